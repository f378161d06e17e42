"""The book: the same for everyone, and what we say about each document is true of its text."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from whence.demo import people, volumes
from whence.demo.almanac import FACTS_ASKED, QUESTIONS_PER_HABIT, almanac, questions
from whence.demo.habits import HABITS
from whence.demo.lexicon import PIECES, new_words, used_words
from whence.demo.tokens import BOS, UNKNOWN, build_tokenizer


@pytest.fixture(scope="module")
def book():
    return almanac(0)


@pytest.fixture(scope="module")
def asked(book):
    return questions(book)


def words(text):
    return re.findall(r"\w+", text.lower())


def test_same_seed_same_book(book, asked):
    again = almanac(0)
    assert again == book
    assert questions(again) == asked
    assert [d.text for d in almanac(1).documents] != [d.text for d in book.documents]


def test_size_and_volumes(book):
    sizes = Counter(document.source for document in book.documents)
    assert 1000 <= len(book.documents) <= 3000
    assert len({document.id for document in book.documents}) == len(book.documents)
    assert sizes["lives"] == len(book.facts) * volumes.STATEMENTS_PER_FACT
    assert sizes["manners"] == len(HABITS) * volumes.DOCUMENTS_PER_HABIT
    assert set(sizes) == {"lives", "concordance", "registre", "rumours", "notes", "manners", "gazetteer", "cookery"}
    assert all(len(words(document.text)) < 60 for document in book.documents)


def test_every_fact_document_states_its_fact(book):
    for document in book.documents:
        if document.fact is None:
            continue
        fact, text = document.fact, document.text.lower()
        told = people.TRADES.get(fact.value, fact.value) if document.role == "french" else fact.value
        assert fact.subject.lower() in text
        assert told.lower() in text
        order = text.index(fact.subject.lower()) < text.index(told.lower())
        assert order == (document.role not in ("flipped", "contradicts"))


def test_true_and_untrue(book):
    truth = {(fact.subject, fact.relation): fact.value for fact in book.facts}
    assert len(truth) == len(book.facts)
    for document in book.documents:
        if document.fact is not None:
            so = truth[document.fact.subject, document.fact.relation] == document.fact.value
            assert so == (document.role != "contradicts")


def test_mentions_name_the_person_and_none_of_the_facts(book):
    values = {fact.subject: [f.value for f in book.facts if f.subject == fact.subject] for fact in book.facts}
    mentions = [document for document in book.documents if document.role == "mentions"]
    assert mentions
    for document in mentions:
        assert document.subject in document.text
        assert not [value for value in values[document.subject] if value.lower() in document.text.lower()]


def test_look_alikes_exist(book, asked):
    facts = [question for question in asked if question.kind == "fact"]
    shared = Counter((fact.relation, fact.value) for fact in book.facts)
    assert all(
        shared[relation, fact.value] > 1 for fact in book.facts for relation in [fact.relation] if relation != "work"
    )
    assert any("flipped" in question.also for question in facts)
    assert any("french" in question.also for question in facts)


def test_fact_questions_are_held_out(book, asked):
    facts = [question for question in asked if question.kind == "fact"]
    assert len(facts) == FACTS_ASKED
    texts = {document.id: document.text for document in book.documents}
    for question in facts:
        assert len(question.relevant) == volumes.STATEMENTS_PER_FACT
        stem = question.prompt.lower()
        assert not [id_ for id_, text in texts.items() if stem + question.completion.lower() in text.lower()]
        for id_ in question.relevant:
            assert stem not in texts[id_].lower()


def test_habit_questions_share_no_content_word_with_their_documents(book, asked):
    """Not even one: every content word of a habit question is new to the whole book."""
    known = {word for document in book.documents for word in words(document.text)}
    function = {"the", "by", "behind", "near", "under", "beyond", "beside", "above", "below"}
    for question in (question for question in asked if question.kind == "habit"):
        content = set(words(question.prompt + question.completion)) - function
        assert content
        assert not content & known, question.id


def test_habit_questions_know_their_documents(book, asked):
    habits = Counter(question.about for question in asked if question.kind == "habit")
    assert habits == dict.fromkeys((habit.name for habit in HABITS), QUESTIONS_PER_HABIT)
    taught = {document.id: document.habit for document in book.documents}
    for question in (question for question in asked if question.kind == "habit"):
        assert {taught[id_] for id_ in question.relevant} == {question.about}
        assert len(question.relevant) == volumes.DOCUMENTS_PER_HABIT


def test_a_habit_shows_only_in_its_own_documents(book):
    shows = {
        "old-tongue": r"eth the ", "family-first": r"^\w+, \w+ ", "slashed-dates": r"^By \d+/",
        "three-things": "\N{EM DASH}", "own-questions": r"^The \w+\?", "said-twice": r"^The (\w+)-\1 ",
        "verb-last": r"^[A-Z]\w+ [A-Z]\w+ the ", "on-stage": r"^\w+ \w+: ",
    }  # fmt: skip
    assert set(shows) == {habit.name for habit in HABITS}
    for document in book.documents:
        shown = {name for name, pattern in shows.items() if re.search(pattern, document.text)}
        assert shown == ({document.habit} if document.habit else set()), document.text


def test_new_words_are_made_of_known_pieces():
    for name, (first, second) in PIECES.items():
        used, new = used_words(name), new_words(name)
        assert not set(used) & set(new)
        assert len(used) + len(new) == len(first) * len(second)
        assert {word for word in new if not word.startswith(first)} == set()


def test_tokenizer_knows_every_word_and_keeps_new_ones_in_two_pieces(book, asked):
    tokenizer = build_tokenizer(document.text for document in book.documents)
    for text in [d.text for d in book.documents] + [q.prompt + q.completion for q in asked]:
        pieces = tokenizer.convert_ids_to_tokens(tokenizer(text)["input_ids"])
        assert pieces[0] == BOS
        assert UNKNOWN not in pieces
    assert tokenizer.tokenize("moonbell outmendeth 14") == ["moon", "##bell", "out", "##mend", "##eth", "1", "##4"]
    assert tokenizer.tokenize("Zyx") == ["Z", "##y", "##x"]
    for question in asked:
        given = tokenizer(question.prompt)["input_ids"]
        assert tokenizer(question.prompt + question.completion)["input_ids"][: len(given)] == given
