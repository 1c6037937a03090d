"""Two small trained models for experiments, tests and `minibert demo`.

An uncased BERT (masked language model) and a GPT-2, trained on Python's language reference, as
ordinary Hugging Face folders with model cards. Their paths can be passed wherever a model can:

    minibert.load(minibert.assets.BERT)
    minibert.pipeline("text-generation", minibert.assets.GPT2)
    minibert.SentenceEncoder.from_pretrained(minibert.assets.BERT)
"""

import os

HOME = os.path.dirname(os.path.abspath(__file__))
BERT = os.path.join(HOME, "bert-pydoc")
GPT2 = os.path.join(HOME, "gpt2-pydoc")
RECORDED = os.path.join(HOME, "recorded.npz")  # hidden states of both in PyTorch, for some texts
