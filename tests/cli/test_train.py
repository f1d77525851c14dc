def test_a_tiny_run_trains(charlm, tiny):
    result = charlm("train", "--config", "tiny.yaml")

    assert result.code == 0, result.stderr
