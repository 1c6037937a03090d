"""A user's program that names every public name, for type checkers; it is never run.

Each `assert_type` fails in pyright and in ty if a name has another type than users are told.
"""

from collections.abc import Iterator
from typing import Any, assert_type

import jax
import numpy as np
from flax import nnx

import minibert
from minibert import analysis, plots, pooling, scratch, train
from minibert.models import outputs
from minibert.pipelines import FillMaskPipeline, Pipeline, TextGenerationPipeline
from minibert.pipelines import QuestionAnsweringPipeline as Answers
from minibert.pipelines import TokenClassificationPipeline as Tags
from minibert.pipelines import ZeroShotClassificationPipeline as Judge
from minibert.train import data

ids = np.array([[1, 2, 3]])


def bert_heads() -> None:
    config = minibert.BertConfig.tiny(hidden_size=48)
    assert_type(config, minibert.BertConfig)
    rngs = nnx.Rngs(0)
    bert = minibert.BertModel(config, rngs=rngs).eval()
    assert_type(bert, minibert.BertModel)
    out = bert(ids, attention_mask=[[1, 1, 0]], output_hidden_states=True)
    assert_type(out, outputs.BaseModelOutputWithPoolingAndCrossAttentions)
    assert_type(out.last_hidden_state, jax.Array)
    assert_type(out.hidden_states, tuple[jax.Array, ...] | None)
    words = minibert.BertForMaskedLM(config, rngs=rngs)(input_ids=ids, token_type_ids=ids)
    assert_type(words, outputs.MaskedLMOutput)
    both = minibert.BertForPreTraining(config, rngs=rngs)(ids)
    assert_type(both, outputs.BertForPreTrainingOutput)
    assert_type(
        minibert.BertForNextSentencePrediction(config, rngs=rngs)(ids),
        outputs.NextSentencePredictorOutput,
    )
    assert_type(
        minibert.BertForSequenceClassification(config, rngs=rngs)(ids, rngs=rngs),
        outputs.SequenceClassifierOutput,
    )
    assert_type(
        minibert.BertForMultipleChoice(config, rngs=rngs)(ids[None]),
        outputs.MultipleChoiceModelOutput,
    )
    assert_type(
        minibert.BertForTokenClassification(config, rngs=rngs)(ids), outputs.TokenClassifierOutput
    )
    assert_type(
        minibert.BertForQuestionAnswering(config, rngs=rngs)(ids),
        outputs.QuestionAnsweringModelOutput,
    )
    assert_type(
        minibert.BertLMHeadModel(config, rngs=rngs)(ids, logits_to_keep=1),
        outputs.CausalLMOutputWithCrossAttentions,
    )


def classes_by_task() -> None:
    assert_type(minibert.BertConfig.from_pretrained("folder", num_labels=3), minibert.BertConfig)
    config = minibert.AutoConfig.from_pretrained("folder")
    config.save_pretrained("out", overwrite=True)
    for auto in (
        minibert.AutoModel,
        minibert.AutoModelForMaskedLM,
        minibert.AutoModelForCausalLM,
        minibert.AutoModelForSequenceClassification,
        minibert.AutoModelForTokenClassification,
        minibert.AutoModelForQuestionAnswering,
        minibert.AutoModelForMultipleChoice,
        minibert.AutoModelForNextSentencePrediction,
    ):
        auto.from_config(config, rngs=nnx.Rngs(0)).keep_layers([0])
    model = minibert.BertModel.from_pretrained("folder", num_hidden_layers=2)
    assert_type(model, minibert.BertModel)
    model.resize_token_embeddings(100, pad_to_multiple_of=64)
    model.set_input_embeddings(model.get_input_embeddings())
    assert_type(minibert.GenerationConfig.from_pretrained("folder"), minibert.GenerationConfig)


def gpt2_heads() -> None:
    config, rngs = minibert.GPT2Config.tiny(), nnx.Rngs(0)
    assert_type(config.hidden_size, int)
    model = minibert.GPT2LMHeadModel(config, rngs=rngs)
    cache = model.init_cache(1, 16)
    assert_type(cache, minibert.KVCache)
    read = model(ids, past_key_values=cache, logits_to_keep=1)
    assert_type(read, outputs.CausalLMOutputWithCrossAttentions)
    assert_type(read.past_key_values, minibert.KVCache | None)
    bare = minibert.GPT2Model(config, rngs=rngs)(ids)
    assert_type(bare, outputs.BaseModelOutputWithPastAndCrossAttentions)
    double = minibert.GPT2DoubleHeadsModel(config, rngs=rngs)(ids, mc_token_ids=[[1]])
    assert_type(double, outputs.GPT2DoubleHeadsModelOutput)
    assert_type(
        minibert.GPT2ForSequenceClassification(config, rngs=rngs)(ids),
        outputs.SequenceClassifierOutputWithPast,
    )
    assert_type(
        minibert.GPT2ForTokenClassification(config, rngs=rngs)(ids), outputs.TokenClassifierOutput
    )
    assert_type(
        minibert.GPT2ForQuestionAnswering(config, rngs=rngs)(ids),
        outputs.QuestionAnsweringModelOutput,
    )


def roberta_heads() -> None:
    config, rngs = minibert.RobertaConfig.tiny(), nnx.Rngs(0)
    bare = minibert.RobertaModel(config, rngs=rngs)(ids, position_ids=ids)
    assert_type(bare, outputs.BaseModelOutputWithPoolingAndCrossAttentions)
    assert_type(minibert.RobertaForMaskedLM(config, rngs=rngs)(ids), outputs.MaskedLMOutput)
    assert_type(
        minibert.RobertaForCausalLM(config, rngs=rngs)(ids, use_cache=True),
        outputs.CausalLMOutputWithCrossAttentions,
    )
    assert_type(
        minibert.RobertaForSequenceClassification(config, rngs=rngs)(ids),
        outputs.SequenceClassifierOutput,
    )
    assert_type(
        minibert.RobertaForMultipleChoice(config, rngs=rngs)(ids[None]),
        outputs.MultipleChoiceModelOutput,
    )
    assert_type(
        minibert.RobertaForTokenClassification(config, rngs=rngs)(ids),
        outputs.TokenClassifierOutput,
    )
    assert_type(
        minibert.RobertaForQuestionAnswering(config, rngs=rngs)(ids),
        outputs.QuestionAnsweringModelOutput,
    )


def distilbert_heads() -> None:
    config, rngs = minibert.DistilBertConfig.tiny(), nnx.Rngs(0)
    bare = minibert.DistilBertModel(config, rngs=rngs)(ids, position_ids=ids)
    assert_type(bare, outputs.BaseModelOutputWithPastAndCrossAttentions)
    assert_type(minibert.DistilBertForMaskedLM(config, rngs=rngs)(ids), outputs.MaskedLMOutput)
    assert_type(
        minibert.DistilBertForSequenceClassification(config, rngs=rngs)(ids),
        outputs.SequenceClassifierOutput,
    )
    assert_type(
        minibert.DistilBertForMultipleChoice(config, rngs=rngs)(ids[None]),
        outputs.MultipleChoiceModelOutput,
    )
    assert_type(
        minibert.DistilBertForTokenClassification(config, rngs=rngs)(ids),
        outputs.TokenClassifierOutput,
    )
    assert_type(
        minibert.DistilBertForQuestionAnswering(config, rngs=rngs)(ids),
        outputs.QuestionAnsweringModelOutput,
    )


def xlm_roberta_heads() -> None:
    config, rngs = minibert.XLMRobertaConfig.base(), nnx.Rngs(0)
    assert_type(config, minibert.XLMRobertaConfig)
    bare = minibert.XLMRobertaModel(config, rngs=rngs)(ids, position_ids=ids)
    assert_type(bare, outputs.BaseModelOutputWithPoolingAndCrossAttentions)
    assert_type(minibert.XLMRobertaForMaskedLM(config, rngs=rngs)(ids), outputs.MaskedLMOutput)
    assert_type(
        minibert.XLMRobertaForCausalLM(config, rngs=rngs)(ids),
        outputs.CausalLMOutputWithCrossAttentions,
    )
    assert_type(
        minibert.XLMRobertaForSequenceClassification(config, rngs=rngs)(ids),
        outputs.SequenceClassifierOutput,
    )
    assert_type(
        minibert.XLMRobertaForMultipleChoice(config, rngs=rngs)(ids[None]),
        outputs.MultipleChoiceModelOutput,
    )
    assert_type(
        minibert.XLMRobertaForTokenClassification(config, rngs=rngs)(ids),
        outputs.TokenClassifierOutput,
    )
    assert_type(
        minibert.XLMRobertaForQuestionAnswering(config, rngs=rngs)(ids),
        outputs.QuestionAnsweringModelOutput,
    )


def camembert_heads() -> None:
    config, rngs = minibert.CamembertConfig.base(), nnx.Rngs(0)
    assert_type(config, minibert.CamembertConfig)
    bare = minibert.CamembertModel(config, rngs=rngs)(ids, position_ids=ids)
    assert_type(bare, outputs.BaseModelOutputWithPoolingAndCrossAttentions)
    assert_type(minibert.CamembertForMaskedLM(config, rngs=rngs)(ids), outputs.MaskedLMOutput)
    assert_type(
        minibert.CamembertForCausalLM(config, rngs=rngs)(ids),
        outputs.CausalLMOutputWithCrossAttentions,
    )
    assert_type(
        minibert.CamembertForSequenceClassification(config, rngs=rngs)(ids),
        outputs.SequenceClassifierOutput,
    )
    assert_type(
        minibert.CamembertForMultipleChoice(config, rngs=rngs)(ids[None]),
        outputs.MultipleChoiceModelOutput,
    )
    assert_type(
        minibert.CamembertForTokenClassification(config, rngs=rngs)(ids),
        outputs.TokenClassifierOutput,
    )
    assert_type(
        minibert.CamembertForQuestionAnswering(config, rngs=rngs)(ids),
        outputs.QuestionAnsweringModelOutput,
    )


def mpnet_heads() -> None:
    config, rngs = minibert.MPNetConfig.tiny(), nnx.Rngs(0)
    bare = minibert.MPNetModel(config, rngs=rngs)(ids, position_ids=ids)
    assert_type(bare, outputs.BaseModelOutputWithPoolingAndCrossAttentions)
    assert_type(minibert.MPNetForMaskedLM(config, rngs=rngs)(ids), outputs.MaskedLMOutput)
    assert_type(
        minibert.MPNetForSequenceClassification(config, rngs=rngs)(ids),
        outputs.SequenceClassifierOutput,
    )
    assert_type(
        minibert.MPNetForMultipleChoice(config, rngs=rngs)(ids[None]),
        outputs.MultipleChoiceModelOutput,
    )
    assert_type(
        minibert.MPNetForTokenClassification(config, rngs=rngs)(ids),
        outputs.TokenClassifierOutput,
    )
    assert_type(
        minibert.MPNetForQuestionAnswering(config, rngs=rngs)(ids),
        outputs.QuestionAnsweringModelOutput,
    )


def electra_heads() -> None:
    config, rngs = minibert.ElectraConfig.tiny(), nnx.Rngs(0)
    bare = minibert.ElectraModel(config, rngs=rngs)(ids, token_type_ids=ids)
    assert_type(bare, outputs.BaseModelOutputWithPastAndCrossAttentions)
    generator = minibert.ElectraForMaskedLM(config, rngs=rngs)
    assert_type(generator(ids), outputs.MaskedLMOutput)
    discriminator = minibert.ElectraForPreTraining(config, rngs=rngs)
    assert_type(discriminator(ids), outputs.ElectraForPreTrainingOutput)
    assert_type(
        minibert.ElectraForCausalLM(config, rngs=rngs)(ids, use_cache=True),
        outputs.CausalLMOutputWithCrossAttentions,
    )
    assert_type(
        minibert.ElectraForSequenceClassification(config, rngs=rngs)(ids),
        outputs.SequenceClassifierOutput,
    )
    assert_type(
        minibert.ElectraForMultipleChoice(config, rngs=rngs)(ids[None]),
        outputs.MultipleChoiceModelOutput,
    )
    assert_type(
        minibert.ElectraForTokenClassification(config, rngs=rngs)(ids),
        outputs.TokenClassifierOutput,
    )
    assert_type(
        minibert.ElectraForQuestionAnswering(config, rngs=rngs)(ids),
        outputs.QuestionAnsweringModelOutput,
    )
    pair = minibert.train.ElectraPair(generator, discriminator)
    assert_type(pair.models()[0], minibert.ElectraForMaskedLM)
    assert_type(minibert.train.electra_pretraining(), minibert.train.Objective)
    assert_type(minibert.train.replaced_tokens, minibert.train.Objective)


def albert_heads() -> None:
    config, rngs = minibert.AlbertConfig.tiny(), nnx.Rngs(0)
    assert_type(config.embedding_size, int)
    bare = minibert.AlbertModel(config, rngs=rngs)(ids, position_ids=ids)
    assert_type(bare, outputs.BaseModelOutputWithPoolingAndCrossAttentions)
    assert_type(
        minibert.AlbertForPreTraining(config, rngs=rngs)(ids), outputs.AlbertForPreTrainingOutput
    )
    assert_type(minibert.AlbertForMaskedLM(config, rngs=rngs)(ids), outputs.MaskedLMOutput)
    assert_type(
        minibert.AlbertForSequenceClassification(config, rngs=rngs)(ids),
        outputs.SequenceClassifierOutput,
    )
    assert_type(
        minibert.AlbertForMultipleChoice(config, rngs=rngs)(ids[None]),
        outputs.MultipleChoiceModelOutput,
    )
    assert_type(
        minibert.AlbertForTokenClassification(config, rngs=rngs)(ids),
        outputs.TokenClassifierOutput,
    )
    assert_type(
        minibert.AlbertForQuestionAnswering(config, rngs=rngs)(ids),
        outputs.QuestionAnsweringModelOutput,
    )


def checkpoints(folder: str) -> None:
    model, info = minibert.load(folder, output_loading_info=True, num_labels=3)
    assert_type(info, minibert.LoadingInfo)
    model.save_pretrained(folder, overwrite=True)
    again = minibert.load(folder, dtype="bfloat16", sharding=minibert.Sharding.of_devices())
    again(ids)
    tagger = minibert.BertForTokenClassification.from_pretrained(folder, new_head=True)
    assert_type(tagger, minibert.BertForTokenClassification)
    assert_type(minibert.verify(tagger).passed, bool)
    fast = minibert.compiled(tagger)
    assert_type(fast(ids, attention_mask=ids), outputs.TokenClassifierOutput)
    minibert.on_host(tagger)
    assert_type(minibert.read_documents(folder), dict[str, str])
    assert_type(minibert.assets.BERT, str)
    assert issubclass(minibert.errors.ConfigError, minibert.errors.MinibertError)
    assert_type(minibert.__version__, str)


def texts(folder: str) -> None:
    gpt2 = minibert.GPT2LMHeadModel.from_pretrained(folder)
    settings = minibert.GenerationConfig(max_new_tokens=4)
    minibert.generate(gpt2, [[1, 2], [3]], generation_config=settings, key=jax.random.key(0))
    gpt2.generation_config = assert_type(gpt2.generation_config, minibert.GenerationConfig)
    assert_type(minibert.stream(gpt2, ids, max_new_tokens=4), Iterator[np.ndarray])
    minibert.generate(
        gpt2,
        ids,
        stopping_criteria=[lambda texts, scores: texts.shape[1] > 9],
        prefix_allowed_tokens_fn=lambda prompt, text: [prompt, *text.tolist()],
    )
    assert_type(minibert.pipeline("fill-mask", folder), FillMaskPipeline)
    assert_type(minibert.pipeline("ner", folder), Tags)
    assert_type(minibert.pipeline("question-answering", folder), Answers)
    assert_type(minibert.pipeline("text-generation", gpt2), TextGenerationPipeline)
    assert_type(minibert.pipeline("zero-shot-classification", folder), Judge)
    assert_type(minibert.pipeline(folder, folder, batch_size=8), Pipeline)
    assert_type(minibert.pipeline(model=folder), Pipeline)
    assert_type(minibert.pipelines.TASKS, dict[str, type[Pipeline]])
    encoder = minibert.SentenceEncoder.from_pretrained(folder, max_seq_length=64)
    assert_type(encoder, minibert.SentenceEncoder)
    vectors = encoder.encode(["a text"], truncate_dim=8)
    assert_type(vectors, np.ndarray)
    assert_type(encoder.encode(["a text"], None, "a prompt: ", 8), np.ndarray)
    assert_type(encoder.encode(inputs="a text", precision="int8", ranges=vectors), np.ndarray)
    encoder.truncate_dim, encoder.similarity_fn_name = 8, "dot"
    assert_type(encoder.encode_query("a text", convert_to_tensor=True), jax.Array)
    tokens = encoder.encode_document(["a text"], output_value="token_embeddings")
    assert_type(tokens, np.ndarray | list[np.ndarray])
    assert_type(encoder.similarity(vectors, vectors), np.ndarray)
    hits = encoder.semantic_search(vectors, vectors, top_k=1)
    assert_type(hits, list[list[dict[str, int | float]]])


def inside(bert: minibert.BertModel) -> None:
    inner = minibert.captured(bert, "encoder.layer.*", ids, attention_mask=ids)
    pooled = analysis.pool_layers(bert(ids).hidden_states or (), ids)
    assert_type(pooled, np.ndarray)
    plots.attention_maps(inner["encoder.layer.0"], ["a"], title="Layer 0")
    states = bert(ids).last_hidden_state
    assert_type(pooling.POOLINGS["mean"](states, states[..., 0] > 0), jax.Array)


def training(folder: str, tokenizer: Any) -> None:
    model = minibert.BertForSequenceClassification.from_pretrained(folder, num_labels=2)
    trainer = train.Trainer(
        model,
        train.classification(model.config),
        train.averaged(train.layerwise(train.adamw(train.schedule(1e-4, 10)), model), 0.99),
        lora=train.LoRA(r=4),
        accumulate=2,
    )
    rows = [{"text": "a", "label": "b"}]
    batches = data.classification(rows, tokenizer, max_length=8, batch_size=1, shuffle=True)
    done = train.fit(trainer, batches, steps=1, checkpoints=train.Checkpoints(folder=folder))
    assert_type(done, train.Result)
    adapter = train.load_adapter(model, folder, revision="main", allow_pickle=True)
    attached = train.attach(model, train.weighted_adapter(model, [adapter], [0.5]))
    assert_type(attached, minibert.BertForSequenceClassification)
    train.load_merged(folder, minibert.BertModel, base=folder, dtype="bfloat16")
    toy = scratch.ToyCausalLM(scratch.ToyConfig(vocab_size=9), rngs=nnx.Rngs(0))
    assert_type(scratch.continued(toy, [1], 2, window=4), np.ndarray)
