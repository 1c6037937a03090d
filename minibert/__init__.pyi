"""The public names, by topic, and the modules from which they are imported on first use."""

# sentences, pipelines and generation
from minibert.embedding.encoder import SentenceEncoder as SentenceEncoder
from minibert.pipelines import pipeline as pipeline
from minibert.generation.api import generate as generate, stream as stream
from minibert.checkpoint.generation_config import GenerationConfig as GenerationConfig

# models and their checkpoints
from minibert.models.registry import load as load
from minibert.conversion.api import verify as verify
from minibert.models.auto import (
    AutoConfig as AutoConfig,
    AutoModel as AutoModel,
    AutoModelForCausalLM as AutoModelForCausalLM,
    AutoModelForMaskedLM as AutoModelForMaskedLM,
    AutoModelForMultipleChoice as AutoModelForMultipleChoice,
    AutoModelForNextSentencePrediction as AutoModelForNextSentencePrediction,
    AutoModelForQuestionAnswering as AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification as AutoModelForSequenceClassification,
    AutoModelForTokenClassification as AutoModelForTokenClassification,
)
from minibert.checkpoint.matching import LoadingInfo as LoadingInfo
from minibert.models.compilation import compiled as compiled
from minibert.nn.cache import KVCache as KVCache
from minibert.models.bert import (
    BertConfig as BertConfig,
    BertForMaskedLM as BertForMaskedLM,
    BertForMultipleChoice as BertForMultipleChoice,
    BertForNextSentencePrediction as BertForNextSentencePrediction,
    BertForPreTraining as BertForPreTraining,
    BertForQuestionAnswering as BertForQuestionAnswering,
    BertForSequenceClassification as BertForSequenceClassification,
    BertForTokenClassification as BertForTokenClassification,
    BertLMHeadModel as BertLMHeadModel,
    BertModel as BertModel,
)
from minibert.models.gpt2 import (
    GPT2Config as GPT2Config,
    GPT2DoubleHeadsModel as GPT2DoubleHeadsModel,
    GPT2ForQuestionAnswering as GPT2ForQuestionAnswering,
    GPT2ForSequenceClassification as GPT2ForSequenceClassification,
    GPT2ForTokenClassification as GPT2ForTokenClassification,
    GPT2LMHeadModel as GPT2LMHeadModel,
    GPT2Model as GPT2Model,
)
from minibert.models.roberta import (
    RobertaConfig as RobertaConfig,
    RobertaForCausalLM as RobertaForCausalLM,
    RobertaForMaskedLM as RobertaForMaskedLM,
    RobertaForMultipleChoice as RobertaForMultipleChoice,
    RobertaForQuestionAnswering as RobertaForQuestionAnswering,
    RobertaForSequenceClassification as RobertaForSequenceClassification,
    RobertaForTokenClassification as RobertaForTokenClassification,
    RobertaModel as RobertaModel,
)
from minibert.models.xlm_roberta import (
    XLMRobertaConfig as XLMRobertaConfig,
    XLMRobertaForCausalLM as XLMRobertaForCausalLM,
    XLMRobertaForMaskedLM as XLMRobertaForMaskedLM,
    XLMRobertaForMultipleChoice as XLMRobertaForMultipleChoice,
    XLMRobertaForQuestionAnswering as XLMRobertaForQuestionAnswering,
    XLMRobertaForSequenceClassification as XLMRobertaForSequenceClassification,
    XLMRobertaForTokenClassification as XLMRobertaForTokenClassification,
    XLMRobertaModel as XLMRobertaModel,
)
from minibert.models.camembert import (
    CamembertConfig as CamembertConfig,
    CamembertForCausalLM as CamembertForCausalLM,
    CamembertForMaskedLM as CamembertForMaskedLM,
    CamembertForMultipleChoice as CamembertForMultipleChoice,
    CamembertForQuestionAnswering as CamembertForQuestionAnswering,
    CamembertForSequenceClassification as CamembertForSequenceClassification,
    CamembertForTokenClassification as CamembertForTokenClassification,
    CamembertModel as CamembertModel,
)
from minibert.models.distilbert import (
    DistilBertConfig as DistilBertConfig,
    DistilBertForMaskedLM as DistilBertForMaskedLM,
    DistilBertForMultipleChoice as DistilBertForMultipleChoice,
    DistilBertForQuestionAnswering as DistilBertForQuestionAnswering,
    DistilBertForSequenceClassification as DistilBertForSequenceClassification,
    DistilBertForTokenClassification as DistilBertForTokenClassification,
    DistilBertModel as DistilBertModel,
)
from minibert.models.mpnet import (
    MPNetConfig as MPNetConfig,
    MPNetForMaskedLM as MPNetForMaskedLM,
    MPNetForMultipleChoice as MPNetForMultipleChoice,
    MPNetForQuestionAnswering as MPNetForQuestionAnswering,
    MPNetForSequenceClassification as MPNetForSequenceClassification,
    MPNetForTokenClassification as MPNetForTokenClassification,
    MPNetModel as MPNetModel,
)
from minibert.models.electra import (
    ElectraConfig as ElectraConfig,
    ElectraForCausalLM as ElectraForCausalLM,
    ElectraForMaskedLM as ElectraForMaskedLM,
    ElectraForMultipleChoice as ElectraForMultipleChoice,
    ElectraForPreTraining as ElectraForPreTraining,
    ElectraForQuestionAnswering as ElectraForQuestionAnswering,
    ElectraForSequenceClassification as ElectraForSequenceClassification,
    ElectraForTokenClassification as ElectraForTokenClassification,
    ElectraModel as ElectraModel,
)
from minibert.models.albert import (
    AlbertConfig as AlbertConfig,
    AlbertForMaskedLM as AlbertForMaskedLM,
    AlbertForMultipleChoice as AlbertForMultipleChoice,
    AlbertForPreTraining as AlbertForPreTraining,
    AlbertForQuestionAnswering as AlbertForQuestionAnswering,
    AlbertForSequenceClassification as AlbertForSequenceClassification,
    AlbertForTokenClassification as AlbertForTokenClassification,
    AlbertModel as AlbertModel,
)

# many devices
from minibert.sharding.mesh import Sharding as Sharding
from minibert.sharding.placement import on_host as on_host

# looking inside
from minibert.inspection.capture import captured as captured

# data
from minibert.data.documents import read_documents as read_documents

# modules
from minibert import (
    assets as assets,
    errors as errors,
    pipelines as pipelines,
    scratch as scratch,
    train as train,
)
from minibert.inspection import analysis as analysis, plots as plots
from minibert.nn import pooling as pooling

__version__: str
__all__: list[str]
SUBMODULES: tuple[str, ...]
