"""A vocabulary over the thousand tokens of the fake model."""

import pytest

from quire.engine.grammar import make_tokenizer
from quire.testing.vocabulary import make_vocabulary


@pytest.fixture(scope="session")
def vocabulary():
    return make_vocabulary()


@pytest.fixture(scope="session")
def grammar_tokenizer(vocabulary):
    return make_tokenizer(vocabulary)
