"""Rules on replies: how they are written, and every fault that keeps one from ever being of use."""

from __future__ import annotations

import textwrap
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mta.config.describe import written
from mta.config.loader import SHIPPED_RULES, loads, read_text
from mta.config.providers import definitions
from mta.config.reply_book import ReplyRules, provider_problems, read_file
from mta.config.reply_classes import CLASSES
from mta.config.reply_patterns import CHOICES, TEXT_LIMIT, TextPattern, parse_enhanced, parse_regex, parse_reply, said
from mta.config.reply_rules import (
    FATES,
    SCOPES,
    STAGES,
    ReplyRule,
    parse_after,
    parse_connections,
    parse_slow,
    parse_suspend,
)
from mta.smtp.reply import ReplyParser

RULE = 'name: a, code: 5xx, class: policy, samples: ["550 no"]'


def problems(text: str) -> list[str]:
    """`line:column: message` of a file of rules."""
    return [f"{one.line}:{one.column}: {one.message}" for one in read_file(textwrap.dedent(text), "r")[1]]


def one_problem(rule: str) -> str:
    found = problems(f"rules:\n  - {{{rule}}}\n")
    assert len(found) == 1, found
    return found[0]


def shipped() -> tuple[ReplyRule, ...]:
    rules, faults = read_file(Path(SHIPPED_RULES).read_text("utf-8"), SHIPPED_RULES)
    assert faults == []
    return rules


def test_all_samples_of_the_shipped_rules_fit() -> None:
    """Every shipped rule takes each of its samples, at every provider and stage that it names, before any other."""
    rules = shipped()
    assert len(rules) > 90
    known = definitions(loads("hostname: mta.example.net").shaping)
    assert list(provider_problems(rules, known)) == []


def test_a_sample_is_read_as_the_client_reads_a_reply() -> None:
    """What the patterns see of a sample is what they would see of the same bytes from a host."""
    for rule in shipped():
        for sample in rule.samples:
            wire = sample.text.strip().replace("\n", "\r\n").encode() + b"\r\n"
            reply, = ReplyParser().feed(wire)
            assert said(reply.code, reply.enhanced, reply.lines) == sample.said, sample.text


def test_no_shipped_rule_blames_a_recipient_for_what_we_are() -> None:
    """x.7 with its authentication, listings and policies never suppresses, whatever the provider and stage."""
    rules = ReplyRules((), shipped())
    for rule in rules.all():
        for sample in rule.samples:
            if CLASSES[rule.kind].decision == "slow":
                assert rule.message in ("", "defer"), rule.name
            if CLASSES[rule.kind].decision == "suppress":
                assert not any(word in sample.text.lower() for word in ("spamhaus", "blocked using", "reputation"))


def test_a_rule_may_be_inline_and_goes_before_the_shipped_ones() -> None:
    """`rules` of the configuration are asked first, so that one of them overrides a shipped rule."""
    config = loads("""
hostname: mta.example.net
rules:
  - name: ours
    text: zen.spamhaus
    class: content
    message: bounce
    samples: ["554 5.7.1 blocked using zen.spamhaus.org"]
""")
    reply = parse_reply("554 5.7.1 blocked using zen.spamhaus.org")
    found = config.rules.find("", "rcpt", reply)
    assert found is not None
    assert (found.name, found.place) == ("ours", "<text>:4")
    before = loads("hostname: mta.example.net").rules.find("", "rcpt", reply)
    assert before is not None
    assert before.name == "listed"
    assert loads("{hostname: mta.example.net, rules_file: none}").rules.find("", "rcpt", reply) is None


def test_what_is_shown_of_rules_reads_to_the_same_rules() -> None:
    """`mta config show` prints rules as they may be written."""
    config = loads(f"{{hostname: mta.example.net, rules: [{{{RULE}}}]}}")
    again = loads(f"{{hostname: mta.example.net, rules: {written(config.rules, ReplyRules)}}}")
    assert [rule.written for rule in again.rules.own] == [rule.written for rule in config.rules.own]


@pytest.mark.parametrize(("rule", "expected"), [
    ('name: a, code: 5xx, text: spam, class: content, samples: ["550 no"]',
     '2:64: rule a: it does not match its own sample: text: "spam" is not found in it'),
    ('name: a, code: 4xx, class: content, samples: ["550 no"]',
     "2:52: rule a: it does not match its own sample: the code 550 is none of 4xx"),
    ('name: a, enhanced: x.7.1, class: content, samples: ["550 5.7.2 no"]',
     "2:58: rule a: it does not match its own sample: its enhanced code is 5.7.2, expected x.7.1"),
    ('name: a, enhanced: x.7.1, class: content, samples: ["550 no"]',
     "2:58: rule a: it does not match its own sample: there is no enhanced code in it, expected x.7.1"),
    ('name: a, code: 5xx, unless: [No], class: content, samples: ["550 no"]',
     '2:66: rule a: it does not match its own sample: unless: "No" is found in it'),
    ('name: a, code: 5xx, class: content, samples: ["250 ok"]',
     '2:52: rules[0].samples: "250 ok": no refusal: a code that begins with 4 or 5 is expected'),
    ('name: a, code: 250, class: content, samples: ["550 no"]',
     '2:21: rules[0].code: "250": rules are about refusals, so a code begins with 4 or 5'),
    ('name: a, code: 5xx, class: content',
     "2:5: rules[0]: no samples; at least one whole reply that it must match is needed"),
    ('name: a, code: 5xx, class: contents, samples: ["550 no"]',
     '2:33: rules[0].class: "contents": did you mean content?'),
    ('name: a, code: 5xx, samples: ["550 no"]',
     "2:5: rules[0]: it says nothing: expected a class, a message or an action"),
    ('name: a, class: policy, samples: ["550 no"]',
     "2:5: rules[0]: it would match every refusal: expected a code, enhanced, text or stage"),
    ('name: a, code: 5xx, class: policy, after: 3 in 1h, samples: ["550 no"]',
     "2:48: rules[0].after: there is no action that it could begin"),
    ('name: a, code: 5xx, stage: greeting, message: bounce, samples: ["550 no"]',
     "2:52: rules[0].message: no message is at fault at this stage, so none can bounce"),
    ('name: a, code: 5xx, suspend: paths for 1h, samples: ["550 no"]',
     '2:35: rules[0].suspend: "paths for 1h": did you mean path?'),
    ('name: a, code: 5xx, suspend: path for 1, samples: ["550 no"]',
     '2:35: rules[0].suspend: "path for 1": a duration needs a unit, as in 1s or 1m'),
    ('name: a, code: 5xx, text: "(a+)+", class: policy, samples: ["550 no"]',
     '2:32: rules[0].text: "(a+)+": a repeat of something that itself can match in several ways takes too long'),
    ('name: a, code: 5xx, text: "x.*y.*z", class: policy, samples: ["550 no"]',
     '2:32: rules[0].text: "x.*y.*z": its repeats leave 1050625 choices, at most 2000: bound them, as in .{0,40}'),
    ('name: a, code: 5xx, text: "(unclosed", class: policy, samples: ["550 no"]',
     '2:32: rules[0].text: "(unclosed": not a regular expression: missing ), unterminated subpattern at character 1'),
    ('name: a, code: 5xx, text: "x?", class: policy, samples: ["550 no"]',
     '2:32: rules[0].text: "x?": it matches an empty text, so it matches everything'),
    ('name: a, code: 5xx, clas: policy, samples: ["550 no"]',
     '2:26: rules[0]: unknown option "clas"; did you mean class?'),
])
def test_what_is_wrong_is_said_with_its_place(rule: str, expected: str) -> None:
    """Each fault of a rule is told with line and column, and what is expected."""
    assert one_problem(rule) == expected


def test_all_faults_at_once() -> None:
    """Several rules with several faults each: nothing hides another."""
    found = problems("""\
        rules:
          - name: UPPER
            code: [5xx, 9xx]
            text: ["(", "ok"]
            samples: ["nonsense"]
          - name: b
            code: 5xx
            message: bounces
            samples: ["550 no"]
        """)
    assert [one.partition(": ")[0] for one in found] == ["2:11", "3:17", "4:12", "5:15", "8:14"]


def test_a_shadowed_rule_is_told() -> None:
    """A rule whose sample goes to an earlier one is of no use where it stands."""
    found = problems("""\
        rules:
          - {name: wide, code: 5xx, class: policy, samples: ["550 no"]}
          - {name: narrow, code: 550, text: spam, class: content, samples: ["550 spam"]}
        """)
    assert len(found) == 1
    assert found[0].startswith(
        "3:69: rule narrow: the rule wide in r:2 takes this sample at the stage greeting before it; move one")


def test_a_provider_that_is_not_there_is_told() -> None:
    """A rule for a provider that nobody defined can never match."""
    reading = read_text('{hostname: mta.example.net, rules: [{provider: gogle, ' + RULE + "}]}")
    assert [str(one) for one in reading.problems] == [
        '<text>:1:48: rule a: there is no provider "gogle"; did you mean google?']


def test_a_file_of_rules_with_faults_is_a_fault_of_the_configuration(tmp_path: Path) -> None:
    """The rules of a file of one's own are checked like the configuration, under the name of that file."""
    (tmp_path / "r.yaml").write_text("rules:\n  - {name: a, class: policy}\n")
    reading = read_text("{hostname: mta.example.net, rules_file: r.yaml}", str(tmp_path / "mta.yaml"))
    assert reading.config is None
    assert {(one.file, one.line) for one in reading.problems} == {(str(tmp_path / "r.yaml"), 2)}
    missing = read_text("{hostname: mta.example.net, rules_file: no.yaml}", str(tmp_path / "mta.yaml"))
    assert [one.line for one in missing.problems] == [1]


def test_the_manual_names_every_class_stage_and_scope() -> None:
    """docs/rules.md says of each what the code says."""
    page = (Path(__file__).parents[2] / "docs" / "rules.md").read_text("utf-8")
    for one in CLASSES.values():
        assert f"| `{one.name}` | {one.decision} | {one.doc} |" in page
    for name, doc in {**STAGES, **SCOPES, **FATES}.items():
        assert f"| `{name}` | {doc} |" in page


def test_names_are_given_once() -> None:
    """Two rules of one name could not be told apart in counts and events."""
    assert problems(f"rules:\n  - {{{RULE}}}\n  - {{{RULE}}}\n") == [
        '3:5: rules[1]: "a" is already the name of the rule in line 2']


def test_enhanced_patterns() -> None:
    """Any class, any detail, a range."""
    assert parse_enhanced("x.7.28").matches((4, 7, 28))
    assert not parse_enhanced("5.7.28").matches((4, 7, 28))
    assert parse_enhanced("5.7.x").matches((5, 7, 606))
    assert parse_enhanced("5.7.606-649").matches((5, 7, 649))
    assert not parse_enhanced("5.7.606-649").matches((5, 7, 650))
    for text in ("5.7", "2.7.1", "5.7.9-3", "x.x"):
        with pytest.raises(ValueError, match=r"."):
            parse_enhanced(text)


def test_the_enhanced_code_may_stand_inside_the_text() -> None:
    """Behind a # or a bracket, or of another class than the code; but no part of an address."""
    assert parse_reply("550 sorry, no mailbox (#5.1.1)").enhanced == (5, 1, 1)
    assert parse_reply("421 5.7.32 not aligned").enhanced == (5, 7, 32)
    assert parse_reply("550 blocked 5.1.1.9").enhanced is None
    assert parse_reply("550 from 4.4.4.4 refused").enhanced is None


def test_actions_are_written_in_words() -> None:
    """What is parsed prints as it may be said."""
    assert str(parse_suspend("source-provider for 2h")) == "suspend source-provider for 2h"
    assert str(parse_slow("10/min for 30m")) == "slow path to 10/min for 30m"
    assert str(parse_connections("provider 2 for 1h")) == "connections of provider to 2 for 1h"
    assert str(parse_after("20%  of 50 in 10m")) == "20% of 50 in 10m"
    for text in ("0 in 1h", "200% of 5 in 1h", "3 in", "3 per 1h"):
        with pytest.raises(ValueError, match=r"."):
            parse_after(text)


TRAPS = ["a" * 5000, "mailbox " * 700, "user " * 1000, "5.1.1 " * 900, "exceed message size " * 300, "\u0130" * 3000,
         "account recipient address mailbox " * 200, "from sender " * 500, "(" * 4000, "1.1.1.1 " * 700]


def test_hostile_replies_cost_little() -> None:
    """A text of 10 MB made of what patterns look for is cut, and no shipped rule runs away on the rest. No time is
    asserted but one that only a matcher without bounds could miss."""
    rules = ReplyRules((), shipped())
    begun = time.monotonic()
    for trap in TRAPS:
        reply = said(550, "", (trap * (10_000_000 // len(trap)),))
        assert len(reply.text) == TEXT_LIMIT
        for provider in ("", "google", "netease"):
            for stage in STAGES:
                rules.find(provider, stage, reply)
    assert time.monotonic() - begun < 60


@settings(max_examples=150, deadline=None)
@given(st.integers(400, 599), st.text(max_size=300), st.sampled_from(list(STAGES)), st.sampled_from(["", "google"]))
def test_no_text_raises(code: int, text: str, stage: str, provider: str) -> None:
    """Whatever a host says, a rule takes it or none does."""
    rules = ReplyRules((), SHIPPED)
    rules.find(provider, stage, said(code, "", (text,)))  # a stage


@settings(max_examples=300, deadline=None)
@given(st.text("ab.*+?{}()[]|\\1,2^$", max_size=20))
def test_a_pattern_is_compiled_or_refused(text: str) -> None:
    """No expression raises anything but ValueError."""
    try:
        pattern = parse_regex(text)
    except ValueError:
        return
    text = "ab" * (TEXT_LIMIT // 2)
    assert pattern.matches(said(550, "", (text,))) == (pattern.regex.search(text) is not None)


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=200))
def test_no_file_of_rules_raises(text: str) -> None:
    """Faults are reported."""
    read_file(text, "r")
    read_file(f"rules:\n - name: a\n   text: {text!r}\n   samples: [{text!r}]\n", "r")


@settings(max_examples=300, deadline=None)
@given(st.sampled_from([pattern for rule in read_file(Path(SHIPPED_RULES).read_text("utf-8"), "r")[0]
                        for pattern in (*rule.texts, *rule.unless)]), st.data())
def test_the_words_that_a_pattern_needs_are_in_all_that_it_matches(pattern: TextPattern, data: st.DataObject) -> None:
    """Looking for words first changes nothing but the time."""
    text = data.draw(st.from_regex(pattern.regex, alphabet=st.characters(codec="ascii")))[:TEXT_LIMIT]
    assert pattern.matches(said(550, "", (text,))) == (pattern.regex.search(text) is not None)


def test_alternatives_that_cannot_both_match_do_not_multiply() -> None:
    """A list of words is no danger, and what could match in several ways is counted in full."""
    parse_regex("(?:alpha|beta|gamma|delta)s? (?:one|two|three) .{0,100}")
    with pytest.raises(ValueError, match=str(CHOICES)):
        parse_regex("(?:a|ab|abc).{0,1000}")


SHIPPED = shipped()
