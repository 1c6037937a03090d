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
OF_CLASS = {name: facts for facts in FACTS.values() for name in facts.classes}
