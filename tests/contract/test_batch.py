"""3. Row i of a batch gives what sample i gives alone, whatever the other rows hold."""

import pytest
from catalogue import ATTENTION, BUDGETS, POLICIES, THOROUGH, subject
from invariants import LAYOUTS, MULTIPLE, check_rows_alone


@pytest.mark.parametrize(("layout", "kind"), [("ragged", "ratio"), ("ragged", "tokens")])
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("attention", ATTENTION)
@pytest.mark.parametrize("family", THOROUGH)
def test_batch_equals_singles(family: str, attention: str, policy: str, layout: str, kind: str) -> None:
    model, entry, budget = subject(family, attention), POLICIES[policy], BUDGETS[kind]
    if entry.budget_per_image and budget.tokens and layout in MULTIPLE:
        pytest.skip("refused, see the mask oracle")
    inputs = model.make_inputs(**LAYOUTS[layout], seed=1)
    check_rows_alone(model, entry.build(budget), inputs, entry.records)
