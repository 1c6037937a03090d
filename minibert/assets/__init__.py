"""Two small trained models, always at hand: to try things out, for tests, for `minibert demo`.

A lower-cased BERT (masked words) and a GPT-2, trained on Python's language reference; ordinary
Hugging Face folders, each with its card. Their paths are taken wherever a model is asked for:

    minibert.load(minibert.assets.BERT)
    minibert.pipeline("text-generation", minibert.assets.GPT2)
    minibert.SentenceEncoder.from_pretrained(minibert.assets.BERT)
"""

import os

HOME = os.path.dirname(os.path.abspath(__file__))
BERT = os.path.join(HOME, "bert-pydoc")
GPT2 = os.path.join(HOME, "gpt2-pydoc")
RECORDED = os.path.join(HOME, "recorded.npz")  # PyTorch's hidden states of both, for some texts
