"""Models that leave the house and come in: without their text, and in the forms of other programs.

Read in this order: `card` (what a model is, in Markdown), `same` (whether what was written computes the
same), `alone` (charlm's own form), `npz` (NumPy), `gpt2_names` (what others call the parts of a GPT-2), `nanochat` and
`hugging_face`, `gguf_form` (llama.cpp), `steps` (of a model, as functions of tensors), `onnx_form` (graphs),
`export` (all forms in one call); `pickled` and `torch_file` (files of Python and torch, without
running them), `foreign` (a run of another program's model), `nanogpt`, `mingpt`, `makemore`, `importing` (all in one call).
"""

from charlm.exchange.export import FORMS, Exported, Form, export

__all__ = ["FORMS", "Exported", "Form", "export"]
