"""Characters that programs treat in odd ways."""

# Characters that tokenizers treat in ways of their own, or that programs cut, join or drop.
AWKWARD = (
    " \t\n\r\0\x0b\x0c\x1c\x85\xa0\u2028\u2029\u200b\u200d\ufeff\u2581\u0120\u0121"
    "aZ09_-.,:;!?'\"`~@#$%^&*()[]{}<>|/\\+=é\u0301ßıİſ\u00adﬁ中\u3000あ한ع\u202eा\U0001f600"
    "\U0001f3fd\U0001f1e9\ue000\ufffd\U000e0041"
)
