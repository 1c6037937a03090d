"""The facts of every family, and of every class which family it is of."""

import facts_albert
import facts_bert
import facts_distilbert
import facts_electra
import facts_gpt2
import facts_mpnet
import facts_roberta
import facts_xlm_roberta
from facts import Facts

RENAMED = ("xlm-roberta", "camembert")
FACTS: dict[str, Facts] = {
    facts.model_type: facts
    for facts in (
        facts_bert.FACTS,
        facts_gpt2.FACTS,
        facts_roberta.FACTS,
        facts_xlm_roberta.FACTS,
        facts_xlm_roberta.CAMEMBERT,
        facts_distilbert.FACTS,
        facts_mpnet.FACTS,
        facts_electra.FACTS,
        facts_albert.FACTS,
    )
}
CLASSES = {name: config for facts in FACTS.values() for name, config in facts.classes.items()}
# a class of each family, for quick runs
SOME = [facts.words for facts in FACTS.values()]
# XLM-R's and CamemBERT's classes are RoBERTa's under other names and in other files
WITH_CODE = [facts for facts in FACTS.values() if facts.model_type not in RENAMED]
CLASSES_WITH_CODE = {name: config for facts in WITH_CODE for name, config in facts.classes.items()}
SOME_WITH_CODE = [facts.words for facts in WITH_CODE]
OF_CLASS = {name: facts for facts in FACTS.values() for name in facts.classes}
