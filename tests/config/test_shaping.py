"""Layers of shaping: the more specific wins, `~` unsets, totals stand beside, and everything knows its line."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mta.config.loader import loads, read_text
from mta.config.schema import Config, Retry
from mta.config.shaping import (
    BUILT_IN,
    UNSET,
    DefaultLayer,
    DestinationRules,
    DomainLayer,
    Layer,
    Origin,
    ProviderLayer,
    Shaping,
    ShapingRules,
    SourceDestinationLayer,
    SourceLayer,
)
from mta.config.units import Duration, Rate
from tests.config.helpers import HOSTNAME, problems_after_hostname

# --- the order -----------------------------------------------------------------------------------------------------

# From the weakest to the strongest, as it is promised in one sentence.
ORDER = [
    "shipped default", "default", "shipped provider", "provider", "shipped domain", "domain", "source",
    "source and provider", "source and domain",
]


def rules(said: dict[str, dict[str, Any]]) -> ShapingRules:
    """All layers for the source s, the provider p and the domain d.example, each with its options, if it has any."""
    def layer(cls: Any, name: str) -> dict[str, Any]:
        return {"x": cls(said[name])} if name in said else {}

    def named(key: str, found: dict[str, Any]) -> dict[str, Any]:
        return {key: found["x"]} if found else {}

    inner = {"providers": named("p", layer(SourceDestinationLayer, "source and provider")),
             "domains": named("d.example", layer(SourceDestinationLayer, "source and domain"))}
    source = SourceLayer(said.get("source", {}), {}, **inner)
    return ShapingRules(
        default=DefaultLayer(said.get("default", {})), providers=named("p", layer(ProviderLayer, "provider")),
        domains=named("d.example", layer(DomainLayer, "domain")), sources={"s": source},
        shipped=DestinationRules(
            default=DefaultLayer(said.get("shipped default", {})),
            providers=named("p", layer(ProviderLayer, "shipped provider")),
            domains=named("d.example", layer(DomainLayer, "shipped domain"))))


@pytest.mark.parametrize("weaker", range(len(ORDER) - 1))
def test_the_more_specific_wins(weaker: int) -> None:
    """Built-in, default, provider, domain, source, source and provider, source and domain; yours before the shipped."""
    both = rules({ORDER[weaker]: {"connections": 2}, ORDER[weaker + 1]: {"connections": 3}})
    assert both.effective("s", "p", "d.example").connections == 3
    alone = rules({ORDER[weaker]: {"connections": 2}, ORDER[weaker + 1]: {"idle": 7.0}})
    assert alone.effective("s", "p", "d.example") == Shaping(connections=2, idle=Duration(7))


def test_layers_hold_for_what_they_are_about() -> None:
    """Another source, provider or domain does not see them."""
    every = rules({name: {"connections": 2 + index} for index, name in enumerate(ORDER)})
    assert every.effective().connections == 3
    assert every.effective("", "p").connections == 5
    assert every.effective("", "p", "d.example").connections == 7
    assert every.effective("", "", "d.example").connections == 7
    assert every.effective("s", "q", "other.example").connections == 8
    assert every.effective("s", "p", "other.example").connections == 9
    assert every.effective("s", "p", "d.example").connections == 10
    assert every.effective("t", "q", "other.example").connections == 3


def test_unset() -> None:
    """`~` takes the built-in value, whatever weaker layers say; a stronger one may set it again."""
    config = loads(HOSTNAME + """
providers: none
shaping:
  default: {connections: 7, timeouts: {connect: 1s, dot: 20s}, retry: {first: 1m}}
  providers: {p: {match: {mx: "*.p.example"}, connections: ~, timeouts: ~, retry: {first: null}}}
  domains: {d.example: {connections: 3, timeouts: {dot: 30s}}, e.example: {timeouts: }}
retry: {first: 2m}
""")
    shaping = config.shaping
    assert shaping.effective("", "p").connections == 20
    assert (shaping.effective("", "p").timeouts.connect, shaping.effective("", "p").timeouts.dot) == (15, 600)
    assert shaping.effective("", "p").retry.first == 120  # what the top level says is built in
    assert shaping.effective("", "p", "d.example").connections == 3
    assert shaping.effective("", "p", "d.example").timeouts.dot == 30
    assert shaping.effective("", "", "e.example").timeouts.dot == 20  # an empty section unsets nothing
    assert shaping.origin("connections", "", "p") == Origin("built-in, unset in shaping.providers.p", ("<text>", 6))


def test_asked_again_nothing_is_merged() -> None:
    """A look is a dictionary hit: the same object, and for a domain without a section that of all others."""
    shaping = rules({"default": {"connections": 2}, "domain": {"connections": 3}})
    assert shaping.effective("s", "p", "x.example") is shaping.effective("s", "p", "y.example")
    assert shaping.effective("s", "p", "d.example") is shaping.effective("s", "p", "d.example")
    assert shaping.totals("s", "p", "x.example") is shaping.totals("s", "p", "y.example")
    assert shaping.separates("d.example")
    assert not shaping.separates("x.example")


def test_a_domain_of_a_source_alone_is_apart_too() -> None:
    """Its connections are its own from every source, or limits would mean another thing by the source."""
    config = loads(HOSTNAME + "shaping: {domains: {a.example: }}")
    assert config.shaping.separates("a.example")
    assert ShapingRules(sources={"s": SourceLayer({}, {}, {}, {"b.example": SourceDestinationLayer()})}).separates(
        "b.example")


def test_it_travels_to_the_workers() -> None:
    """The supervisor sends it pickled; what is unset stays so."""
    config = loads(HOSTNAME + "shaping: {default: {idle: ~}, providers: {google: {idle: 9s}}}")
    config.shaping.effective("", "google")
    again: Config = pickle.loads(pickle.dumps(config))
    assert again == config
    assert again.shaping.effective("", "google").idle == 9
    assert again.shaping.effective("", "google").tls == "required"  # the shipped file comes along
    assert again.shaping.default.options["idle"] is UNSET


# --- merging -------------------------------------------------------------------------------------------------------

_VALUES = {
    "connections": st.integers(1, 9), "retry.schedule": st.sampled_from([(), (1.0,), (2.0, 3.0)]),
    "retry.first": st.floats(1, 9), "retry.cap": st.floats(1, 9), "timeouts.dot": st.floats(1, 9),
}
_LAYERS = st.fixed_dictionaries({}, optional={
    name: st.one_of(values, st.just(UNSET)) for name, values in _VALUES.items()})


@given(st.fixed_dictionaries({}, optional=dict.fromkeys(ORDER, _LAYERS)))
def test_the_last_word_counts(said: dict[str, dict[str, Any]]) -> None:
    """Of each option the strongest layer that names it decides, and nothing else; unset is built in."""
    strongest_first = [said[name] for name in reversed(ORDER) if name in said]
    shaping = rules(said).effective("s", "p", "d.example")
    found = {"connections": shaping.connections, "timeouts.dot": shaping.timeouts.dot,
             "retry.first": shaping.retry.first, "retry.cap": shaping.retry.cap}
    built_in = {"connections": 20, "timeouts.dot": 600, "retry.first": 300, "retry.cap": 14_400}
    for name, value in found.items():
        word = next((layer[name] for layer in strongest_first if name in layer), UNSET)
        assert value == (built_in[name] if word is UNSET else word), name
    schedule = next((layer.get("retry.schedule", ()) for layer in strongest_first
                     if "retry.schedule" in layer
                     or {layer.get("retry.first", UNSET), layer.get("retry.cap", UNSET)} != {UNSET}), UNSET)
    assert shaping.retry.schedule == (() if schedule is UNSET else schedule)


@given(st.lists(_LAYERS, min_size=9, max_size=9), st.integers(0, 8))
def test_a_layer_that_says_nothing_changes_nothing(layers: list[dict[str, Any]], empty: int) -> None:
    """Whether it is there or not."""
    said = dict(zip(ORDER, layers, strict=True)) | {ORDER[empty]: {}}
    without = {name: options for name, options in said.items() if name != ORDER[empty]}
    assert rules(said).effective("s", "p", "d.example") == rules(without).effective("s", "p", "d.example")


def test_a_more_specific_exponential_schedule_ends_a_written_one() -> None:
    """Otherwise `first` of a domain would have no effect below a schedule of the whole."""
    config = loads(HOSTNAME + """
retry: {schedule: [5m, 1h]}
shaping:
  providers: {google: {retry: {first: 1m}}, yahoo: {retry: {jitter: 0.5}}}
  domains: {a.example: {retry: {schedule: [2m]}}}
""")
    assert config.shaping.effective("", "google").retry == Retry(first=Duration(60))
    assert config.shaping.effective("", "yahoo").retry == Retry(schedule=(Duration(300), Duration(3600)), jitter=0.5)
    assert config.shaping.effective("", "google", "a.example").retry.schedule == (120,)


# --- limits over more than the path ----------------------------------------------------------------------------------


def test_totals_stand_beside_each_other() -> None:
    """They do not replace each other from layer to layer; of one section yours wins over the shipped file."""
    shaping = rules({
        "shipped provider": {"total_connections": 500, "source_connections": 5},
        "provider": {"total_message_rate": (Rate(9, 1),), "source_connections": 6},
        "domain": {"total_connections": 2}, "source": {"total_connections": 100, "connections": 3},
        "source and domain": {"total_message_rate": (Rate(1, 1), Rate(100, 3600))},
    })
    assert [(one.name, one.connections, one.rates) for one in shaping.totals("s", "p", "d.example")] == [
        ("provider:p", 500, (Rate(9, 1),)),
        ("source:s>provider:p", 6, ()),
        ("domain:d.example", 2, ()),
        ("source:s", 100, ()),
        ("source:s>domain:d.example", None, (Rate(1, 1), Rate(100, 3600))),
    ]
    assert [one.name for one in shaping.totals("", "p")] == ["provider:p", "source:>provider:p"]
    assert shaping.totals() == ()
    assert shaping.effective("s", "p", "d.example").connections == 3


def test_what_a_source_says_of_a_provider_replaces_what_the_provider_says_of_each_source() -> None:
    """Both are the same limit."""
    shaping = rules({"shipped provider": {"source_connections": 5}, "source and provider": {"total_connections": 50}})
    assert [(one.name, one.connections) for one in shaping.totals("s", "p")] == [("source:s>provider:p", 50)]
    assert [(one.name, one.connections) for one in shaping.totals("t", "p")] == [("source:t>provider:p", 5)]


@pytest.mark.parametrize("value", [UNSET, None])
def test_a_total_can_be_taken_away(value: object) -> None:
    """By `~` and by `off`."""
    shaping = rules({"shipped provider": {"total_connections": 500}, "provider": {"total_connections": value}})
    assert shaping.totals("", "p") == ()


# --- where it comes from ---------------------------------------------------------------------------------------------


def test_every_value_knows_its_line() -> None:
    """File, line and section; of the top level for retries; or built-in."""
    reading = read_text(HOSTNAME + """\
retry:
  first: 1m
shaping:
  default: {connections: 7}
  providers:
    google:
      connections: 3
      message_rate:
        - 1/s
      timeouts: {dot: 5m}
""", "f.yaml")
    assert reading.config is not None
    shaping = reading.config.shaping

    def origin(option: str, provider: str = "google") -> str:
        return str(shaping.origin(option, "", provider))

    assert origin("connections") == "f.yaml:8, shaping.providers.google"
    assert origin("connections", "") == "f.yaml:5, shaping.default"
    assert origin("message_rate") == "f.yaml:9, shaping.providers.google"
    assert origin("timeouts.dot") == "f.yaml:11, shaping.providers.google"
    assert origin("retry.first") == "f.yaml:3, retry"
    assert origin("retry.cap") == "built-in"
    assert shaping.origin("idle", "", "google") == BUILT_IN
    assert origin("tls").endswith(", providers.google")
    assert "providers.yaml:" in origin("tls")


# --- what the engine asks --------------------------------------------------------------------------------------------


def test_bounds_over_all_layers() -> None:
    """The longest wait, all ages of expiry and all ports that there may be, `~` being the top level's."""
    config = loads(HOSTNAME + """
providers: none
retry: {cap: 1h, jitter: 0.5}
expires: 4d
shaping:
  default: {expires: 2d, port: 26}
  providers: {p: {match: {domains: a.example}, retry: {schedule: [1m, 6h]}, expires: ~}}
  domains: {b.example: {expires: 3d, port: 27}}
""")
    shaping = config.shaping
    assert shaping.longest_wait_s == 6 * 3600 * 1.5
    assert shaping.expiries == [2 * 86_400, 3 * 86_400, 4 * 86_400]
    assert shaping.ports == {26, 27}
    assert shaping.longest_expiry("x.example") == 4 * 86_400  # it may be p's
    assert shaping.longest_expiry("b.example") == 3 * 86_400


# --- mistakes --------------------------------------------------------------------------------------------------------

P = "providers: {p: {match: {mx: '*.p.example'}, "


@pytest.mark.parametrize(("text", "message"), [
    # names
    ("shaping: {providers: {gogle: {connections: 1}}}",
     '2:23: shaping.providers.gogle: there is no provider "gogle"; did you mean "google"?; a new one needs match'),
    ("shaping: {sources: {out1: {connections: 1}}}",
     '2:21: shaping.sources.out1: there is no source "out1" in sources'),
    ("shaping: {default: {total_connections: 5}}",
     "2:21: shaping.default.total_connections: unknown option here; it belongs to shaping.providers, shaping.domains"),
    ("shaping: {default: {conections: 5}}",
     '2:21: shaping.default.conections: unknown option; did you mean "connections"'),
    ("shaping: {default: {timeouts: {dott: 5s}}}",
     'shaping.default.timeouts.dott: unknown option; did you mean "dot"?'),
    ("shaping: {providers: {'a b': {}}}", '2:23: shaping.providers: "a b": a name has 1 to 64 letters'),
    ("providers: shiped", "providers: /"),
    # values
    ("shaping: {default: {message_rate: [100/min, burst 20]}}",
     '"burst 20": a burst belongs to its rate, in quotes, as in "100/min, burst 20"'),
    ("shaping: {default: {message_rate: fast}}", '2:35: shaping.default.message_rate[0]: "fast": not a rate such as'),
    ("shaping: {default: {connections: }}", "2:34: shaping.default.connections: no value, expected a whole number"),
    ("shaping: {default: {skip_hosts: ['*']}}", "too wide a pattern, expected one that ends in a domain"),
    ("shaping: {default: {skip_hosts: ['.a.example']}}", 'as in "*.a.example"'),
    ("shaping: {default: {skip_hosts: [10.0.0.1/8]}}", "10.0.0.1 is not where a /8 begins"),
    ("shaping: {providers: {p: {match: {mx: ['*.com']}}}}", '"*.com": too wide a pattern'),
    ("shaping: {providers: {p: {match: {mx: [192.0.2.1]}}}}", "an address is no name of a host"),
    ("shaping: {providers: {p: {match: {mx: ['*.p.example', 'bü*.p.example']}}}}",
     "2:55: shaping.providers.p.match.mx[1]: \"bü*.p.example\": 'bü*' fits no host: hosts are compared as A-labels"),
    ("shaping: {default: {skip_hosts: ['bü*.p.example']}}",
     "of which it is no part; expected the names written out, or a * for the whole label"),
    ("shaping: {default: {prohibited_hosts: 'mx.*ücher.p.example'}}",
     "2:39: shaping.default.prohibited_hosts[0]: \"mx.*ücher.p.example\": '*ücher' fits no host"),
    ("shaping: {default: {skip_hosts: ['bu\u0308*.example.net']}}", "2:34: shaping.default.skip_hosts[0]: "),
    ("shaping: {providers: {p: {match: {}}}}",
     "2:27: shaping.providers.p.match: nothing to know the provider by, expected mx, domains or networks"),
    ("shaping: {" + P + "}, q: {match: {mx: ['*.q.example', '*.p.example']}}}}",
     "shaping.providers.q.match.mx[1]: *.p.example is of provider p already, expected it once"),
    # what can never take effect
    ("shaping: {default: {message_rate: [10/s, '100,000/h']}}",
     "2:21: shaping.default.message_rate: 100000/h can never be reached beside 10/s"),
    ("shaping: {providers: {google: {connections: 9, source_connections: 4}}}",
     "shaping.providers.google.connections: 9 can never be reached, source_connections is 4"),
    ("shaping: {domains: {a.example: {connections: 9, total_connections: 4}}}",
     "shaping.domains[a.example].connections: 9 can never be reached, total_connections is 4"),
    ("shaping: {providers: {google: {total_connections: 9000}}}",
     "shaping.providers.google.total_connections: 9000 can never be reached, delivery.connections is 5000"),
    ("shaping: {default: {recipients_per_connection: 5, recipients_per_message: 9}}",
     "shaping.default.recipients_per_message: 9 can never be reached, recipients_per_connection is 5"),
    ("shaping: {default: {adaptive: {enabled: no, connections_least: 2}}}",
     "shaping.default.adaptive.connections_least: has no effect, adaptive.enabled is off"),
    ("shaping: {default: {retry: {schedule: [1m], cap: 2h}}}",
     "shaping.default.retry.cap: has no effect, the schedule beside it replaces it"),
    ("routes: {a.example: {relay: h.test}}\nshaping: {domains: {a.example: {port: 26}}}",
     "3:39: shaping.domains[a.example].port: has no effect, routes[a.example] names relays"),
    # contradictions over layers
    ("retry: {first: 10m}\nshaping: {providers: {google: {retry: {cap: 5m}}}}",
     "3:45: shaping.providers.google.retry.cap: retry.first (10m) is above retry.cap (5m)"),
    ("shaping: {domains: {a.example: {expires: 5m}}}",
     "2:42: shaping.domains[a.example].expires: mail expires after 5m, before the first retry (5m)"),
    ("shaping: {default: {connections: 3}, domains: {a.example: {adaptive: {connections_least: 4}}}}",
     "adaptive.connections_least (4) is above connections (3)"),
])
def test_mistakes(text: str, message: str) -> None:
    """Each is one problem, at the place to look at, with what was probably meant."""
    found = problems_after_hostname(text)
    assert len(found) == 1, found
    assert message in found[0]


@pytest.mark.parametrize("text", [
    "shaping: {default: {message_rate: [10/s, '10,000/h']}}",
    "shaping: {default: {message_rate: ['10/s, burst 100', '36,000/h']}}",
    "shaping: {" + P + "connections: 2}}}",
    "shaping: {providers: {google: {match: {mx: '*.example.net'}}}}",  # another way to know one that exists
    "shaping: {providers: {p: {match: {mx: '*.google.com'}}}}",  # yours wins over the shipped file
    "shaping: {default: {skip_hosts: ['*.bücher.example', 'xn--bch*.example.net', 'mx*\uff0eexample.net']}}",
    "providers: none",
    "providers: none\nshaping: {" + P + "connections: 2}}}",
    "shaping: {default: {adaptive: {enabled: no}}}",
    "delivery: {connections: 3}",  # the shipped file is above it, but you did not write that
])
def test_no_mistake(text: str) -> None:
    """What looks alike and is right is let through."""
    loads(HOSTNAME + text)


def test_what_is_about_the_message_is_not_about_the_source() -> None:
    """A source has no retry schedule, expiry, port or prohibited hosts: nothing would come of them."""
    options = "port: 26, prohibited_hosts: a.example, retry: {first: 1m}, expires: 1h"
    text = f"shaping: {{sources: {{out1: {{{options}, providers: {{google: {{{options}}}}}}}}}}}"
    found = problems_after_hostname(text)
    assert len([text for text in found if ": unknown option here; it belongs to " in text]) == 8


def test_all_mistakes_at_once() -> None:
    """In all layers, and beside what is right, which is kept for comparing."""
    assert [text.partition(": ")[0] for text in problems_after_hostname("""\
shaping:
  default: {connections: none, idle: 5, tls: maybe}
  providers:
    google: {connections: -1}
    nobody: {connections: 1}
  domains:
    a.example: {message_rate: [1/s, 2/x]}
""")] == ["3:26", "3:38", "3:46", "5:27", "6:5", "8:37"]


def test_layers_of_given_options() -> None:
    """How tests and programs make one."""
    assert Layer.of(connections=3, timeouts={"dot": Duration(9)}).options == {"connections": 3, "timeouts.dot": 9}
