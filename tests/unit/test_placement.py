"""The planner's promises: exact quotas, no needless move, and never a server fuller than before."""

from __future__ import annotations

import math
import random
from collections import Counter
from fractions import Fraction
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardkit.core import levelling
from shardkit.core.levelling import NOISE, fair_shares
from shardkit.core.placement import Plan, PlannedMove, place, plan, quotas
from shardkit.errors import PlacementError

NAMES = [f"pg{n}" for n in range(64)]
WEIGHTS = st.one_of(st.integers(1, 9), st.sampled_from([0.1, 0.3, 0.5, 1.5, 2.75]))
FLEETS = st.one_of(
    st.sets(st.sampled_from(NAMES), min_size=1).map(lambda names: dict.fromkeys(names, 1.0)),
    st.dictionaries(st.sampled_from(NAMES), WEIGHTS, min_size=1),
)
SHARDS = st.sampled_from([0, 1, 2, 7, 64, 250, 256])


def over_share(held, servers):
    """Load of each server over its fair share: 1.0 is even, 0.0 is empty."""
    shares = fair_shares(servers, math.fsum(held.values()))
    return {name: held.get(name, 0.0) / share if share else 0.0 for name, share in shares.items()}


def least_moves(held: Counter[str], servers: dict[str, float], total: int) -> int:
    """Optimum, found another way than the planner does: every choice among equal remainders is tried."""
    weight = sum(Fraction(str(w)) for w in servers.values())
    share = {name: total * Fraction(str(w)) / weight for name, w in servers.items()}
    whole = {name: math.floor(s) for name, s in share.items()}
    extras = total - sum(whole.values())
    rest = {name: share[name] - whole[name] for name in share}
    cut = sorted(rest.values(), reverse=True)[extras - 1] if extras else 2
    sure = {name for name in rest if rest[name] > cut}
    tied = [name for name in rest if rest[name] == cut]
    gone = sum(count for name, count in held.items() if name not in servers)
    surplus = sum(max(0, held[name] - whole[name]) for name in servers)
    saved_for_sure = sum(held[name] > whole[name] for name in sure)
    choose = extras - len(sure)
    if math.comb(len(tied), choose) <= 200:
        saved = max(sum(held[n] > whole[n] for n in choice) for choice in combinations(tied, choose))
    else:
        saved = min(choose, sum(held[name] > whole[name] for name in tied))
    return gone + surplus - saved_for_sure - saved


def assert_balanced(placement, servers):
    """Every server within one shard of its exact share, and as many above it as the remainders say."""
    held = Counter(placement.values())
    assert set(held) <= set(servers)
    assert {name: held[name] for name in servers} == quotas(servers, len(placement), held=held)


@given(FLEETS, st.integers(0, 8192))
def test_quotas_sum_to_the_total_and_follow_the_weights(servers, total):
    found = quotas(servers, total)
    assert sum(found.values()) == total
    weight = sum(Fraction(str(w)) for w in servers.values())
    share = {name: total * Fraction(str(w)) / weight for name, w in servers.items()}
    assert all(abs(found[name] - share[name]) < 1 for name in servers)
    up = [share[name] % 1 for name in servers if found[name] > share[name]]
    down = [share[name] % 1 for name in servers if found[name] < share[name]]
    assert not up or not down or min(up) >= max(down)


@given(FLEETS, st.integers(0, 8192), st.dictionaries(st.sampled_from(NAMES), st.integers(0, 500)))
def test_what_is_held_decides_ties_only(servers, total, held):
    weight = sum(Fraction(str(w)) for w in servers.values())

    def remainders(found):
        return sorted(
            total * Fraction(str(servers[name])) / weight % 1
            for name in servers
            if found[name] > total * Fraction(str(servers[name])) / weight
        )

    assert remainders(quotas(servers, total, held=held)) == remainders(quotas(servers, total))


def test_weights_are_taken_as_they_are_written():
    assert quotas({"a": 0.1, "b": 0.2, "c": 0.3}, 60) == {"a": 10, "b": 20, "c": 30}
    assert quotas({"a": 1e-9, "b": 3e-9}, 4096) == {"a": 1024, "b": 3072}


def test_the_extra_shard_stays_where_it_is():
    assert quotas({"a": 1, "b": 1, "c": 1}, 4) == {"a": 2, "b": 1, "c": 1}
    assert quotas({"a": 1, "b": 1, "c": 1}, 4, held={"c": 2}) == {"a": 1, "b": 1, "c": 2}


@given(FLEETS, SHARDS)
def test_first_placement_is_balanced(servers, count):
    placement = place(range(count), servers)
    assert set(placement) == set(range(count))
    assert_balanced(placement, servers)


@pytest.mark.parametrize("weigh", [lambda _: 1.0, lambda n: 1.0 + n % 4], ids=["equal", "unequal"])
@pytest.mark.parametrize("count", [1, 2, 3, 5, 16, 63, 64])
def test_no_server_is_above_its_quota_with_4096_shards(count, weigh):
    servers = {f"pg{n}": weigh(n) for n in range(count)}
    held = Counter(place(range(4096), servers).values())
    assert max(held[name] / quota for name, quota in quotas(servers, 4096).items()) <= 1.001


GROWTH = [(3, 4, 1024), (4, 5, 819), (5, 6, 682), (16, 17, 240), (64, 65, 63)]


@pytest.mark.parametrize(("before", "after", "moves"), GROWTH)
def test_growing_by_one_moves_what_the_new_server_gets_and_no_more(before, after, moves):
    small, large = ({f"pg{n}": 1.0 for n in range(count)} for count in (before, after))
    found = plan(place(range(4096), small), large)
    assert len(found.moves) == moves
    assert {move.target for move in found.moves} == {f"pg{before}"}


@given(st.data())
def test_servers_come_and_go_with_the_least_possible_moves(data):
    count = data.draw(SHARDS)
    placement: dict[int, str | None] = dict.fromkeys(range(count))
    for servers in data.draw(st.lists(FLEETS, min_size=1, max_size=6)):
        found = plan(placement, servers)
        held = Counter(name for name in placement.values() if name)
        homeless = sum(name is None for name in placement.values())
        assert len(found.moves) == least_moves(held, servers, count) + homeless
        assert_balanced(found.placement, servers)
        placement = dict(found.placement)


@given(st.dictionaries(st.integers(0, 8191), st.sampled_from([*NAMES[:6], None]), max_size=100), FLEETS)
def test_any_placement_at_all_is_put_right_with_the_least_moves(current, servers):
    found = plan(current, servers)
    held = Counter(name for name in current.values() if name)
    assert len(found.moves) == least_moves(held, servers, len(current)) + sum(n is None for n in current.values())
    assert_balanced(found.placement, servers)


def test_the_optimum_of_these_tests_finds_a_planted_needless_move():
    held = Counter({"a": 3, "b": 3, "c": 4})
    servers = {"a": 1.0, "b": 1.0, "c": 1.0}
    assert least_moves(held, servers, 10) == 0
    assert quotas(servers, 10) != held, "without stickiness a shard would move for nothing"


@given(FLEETS, SHARDS)
def test_planning_again_moves_nothing(servers, count):
    assert plan(place(range(count), servers), servers).moves == ()


@given(st.dictionaries(st.integers(0, 300), st.sampled_from([*NAMES[:6], None]), max_size=60), FLEETS, st.randoms())
def test_a_plan_does_not_depend_on_the_order_of_its_input(current, servers, rng):
    shuffled, turned = list(current.items()), list(servers.items())
    rng.shuffle(shuffled)
    rng.shuffle(turned)
    assert plan(current, servers) == plan(dict(shuffled), dict(turned))
    loads = {shard: float(shard % 7) for shard in current}
    assert plan(current, servers, loads=loads) == plan(dict(shuffled), dict(turned), loads=loads)


def test_a_server_that_comes_back_gets_most_of_its_own_shards_again():
    servers = {f"pg{n}": 1.0 for n in range(8)}
    home = place(range(4096), servers)
    away = plan(home, {name: 1.0 for name in servers if name != "pg3"}).placement
    back = plan(away, servers).placement
    own = {shard for shard, name in home.items() if name == "pg3"}
    again = {shard for shard, name in back.items() if name == "pg3"}
    assert len(own & again) > len(own) / 2


def assert_consistent(found: Plan, current, servers, loads):
    """What a plan says of itself is what its placement is."""
    assert set(found.placement) == set(current)
    assert set(found.placement.values()) <= set(servers)
    assert {move.shard: (move.source, move.target) for move in found.moves} == {
        shard: (current[shard], name) for shard, name in found.placement.items() if current[shard] != name
    }
    assert len({move.shard for move in found.moves}) == len(found.moves)
    for name, load in found.after.items():
        assert load == pytest.approx(sum(loads[shard] for shard, at in found.placement.items() if at == name))
    for name, load in found.before.items():
        assert load == pytest.approx(sum(loads[shard] for shard, at in current.items() if at == name))


@st.composite
def loaded(draw, *, homeless: bool):
    servers = draw(st.dictionaries(st.sampled_from(NAMES[:8]), WEIGHTS, min_size=1))
    where = [*servers, "gone", None] if homeless else [*servers]
    current = draw(st.dictionaries(st.integers(0, 300), st.sampled_from(where), min_size=1, max_size=80))
    loads = {shard: draw(st.integers(0, 10_000)) for shard in current}
    return current, servers, loads


@given(loaded(homeless=True), st.sampled_from([0.0, 0.02, 0.5]))
def test_a_plan_by_load_is_consistent_and_empties_what_left(case, tolerance):
    current, servers, loads = case
    found = plan(current, servers, loads=loads, tolerance=tolerance)
    assert_consistent(found, current, servers, loads if any(loads.values()) else dict.fromkeys(loads, 1))
    assert found.after.get("gone", 0.0) == 0.0


@given(loaded(homeless=False), st.sampled_from([0.0, 0.02, 0.5]))
def test_a_plan_by_load_never_makes_the_fullest_server_fuller(case, tolerance):
    current, servers, loads = case
    found = plan(current, servers, loads=loads, tolerance=tolerance)
    before = sorted(over_share(found.before, servers).values(), reverse=True)
    after = sorted(over_share(found.after, servers).values(), reverse=True)
    assert after[0] <= before[0] * (1 + 1e-9)
    if found.moves:  # where the fullest holds one shard that alone is too large, it is the next one that gets better
        assert after < before
    if before[0] <= 1 + tolerance:
        assert found.moves == ()


@given(loaded(homeless=True), st.sampled_from([0.0, 0.02]))
def test_what_stays_too_full_cannot_be_helped_by_any_single_move(case, tolerance):
    current, servers, loads = case
    if not any(loads.values()):
        return
    found = plan(current, servers, loads=loads, tolerance=tolerance)
    full = over_share(found.after, servers)
    share = {name: sum(loads.values()) * w / sum(servers.values()) for name, w in servers.items()}
    moved = {move.shard for move in found.moves}
    for shard, name in found.placement.items():
        if full[name] <= 1 + tolerance + 1e-6 or shard in moved or not loads[shard]:
            continue
        left = full[name] - loads[shard] / share[name]
        for other in servers.keys() - {name}:
            there = full[other] + loads[shard] / share[other]
            assert there > 1 + tolerance - 1e-6, "this shard would have fitted there"
            assert max(left, there) > full[name] - max(tolerance, 1e-9) - 1e-6, "this move would have eased it"


def pareto(alpha: float, shards: int = 4096) -> dict[int, float]:
    rng = random.Random(20261122)
    loads = dict.fromkeys(range(shards), 0.0)
    for _ in range(40_000):
        loads[rng.randrange(shards)] += rng.paretovariate(alpha)
    return loads


@pytest.mark.parametrize("alpha", [3.0, 1.5])
@pytest.mark.parametrize("count", [4, 16])
def test_skewed_tenants_are_levelled_by_moving_little(alpha, count):
    servers = {f"pg{n}": 1.0 for n in range(count)}
    loads = pareto(alpha)
    found = plan(place(loads, servers), servers, loads=loads)
    assert max(over_share(found.after, servers).values()) <= 1.0201
    assert found.moved <= 0.05 * sum(loads.values())
    assert found.oversized == ()
    assert plan(found.placement, servers, loads=loads).moves == ()


def test_levelling_moves_no_more_than_the_excess_and_one_shard():
    loads = dict.fromkeys(range(300), 10.0)
    current = {shard: "a" if shard < 200 else "b" for shard in loads}
    found = plan(current, {"a": 1.0, "b": 1.0}, loads=loads, tolerance=0.0)
    assert found.moved == 500.0
    assert found.after == {"a": 1500.0, "b": 1500.0}


def test_two_light_shards_go_rather_than_one_heavy_one():
    loads = {0: 100.0, 1: 5.0, 2: 5.0, 3: 90.0}
    found = plan({0: "a", 1: "a", 2: "a", 3: "b"}, {"a": 1.0, "b": 1.0}, loads=loads, tolerance=0.0)
    assert [move.shard for move in found.moves] == [1, 2]
    assert found.after == {"a": 100.0, "b": 100.0}


def test_one_shard_that_ends_it_goes_rather_than_two_that_carry_more():
    loads = {0: 40.0, 1: 47.0, 2: 30.0, 3: 83.0, 4: 20.0}  # "a" has to lose 46
    found = plan({0: "a", 1: "a", 2: "a", 3: "a", 4: "b"}, {"a": 1.0, "b": 1.0}, loads=loads, tolerance=0.4)
    assert found.moves == (PlannedMove(1, "a", "b", 47.0),)


def test_weights_count_by_load_too():
    loads = dict.fromkeys(range(400), 1.0)
    found = plan(dict.fromkeys(loads), {"small": 1.0, "large": 3.0}, loads=loads)
    assert found.after == {"large": 300.0, "small": 100.0}


def test_shards_without_any_load_spread_too():
    loads = {**dict.fromkeys(range(100), 0.0), 100: 9.0, 101: 9.0}
    found = plan(dict.fromkeys(loads), {"a": 1.0, "b": 1.0}, loads=loads)
    assert Counter(found.placement.values()) == {"a": 51, "b": 51}


def test_a_shard_without_a_figure_counts_as_the_mean():
    found = plan({0: "a", 1: "a", 2: "a"}, {"a": 1.0, "b": 1.0}, loads={0: 10.0, 1: 30.0})
    assert found.before == {"a": 60.0, "b": 0.0}
    assert found.after == {"a": 30.0, "b": 30.0}


@pytest.mark.parametrize("loads", [{}, {0: 0.0, 1: 0.0}])
def test_without_any_load_shards_count_the_same(loads):
    assert plan({0: "a", 1: "a"}, {"a": 1.0, "b": 1.0}, loads=loads).after == {"a": 1.0, "b": 1.0}


def test_an_oversized_shard_is_reported_and_the_rest_leaves_it_room():
    loads = {0: 1000.0, **dict.fromkeys(range(1, 31), 10.0)}
    current = {shard: "a" if shard <= 10 else "b" for shard in loads}
    found = plan(current, {"a": 1.0, "b": 1.0}, loads=loads)
    assert found.oversized == (0,)
    assert found.after == {"a": 1000.0, "b": 300.0}


def test_a_shard_that_fits_the_largest_server_is_not_oversized_but_sent_there():
    loads = {0: 50.0, **dict.fromkeys(range(1, 6), 10.0)}
    found = plan(dict.fromkeys(loads, "small"), {"small": 1.0, "large": 1.2}, loads=loads)
    assert found.oversized == ()
    assert found.placement[0] == "large"


def test_one_server_alone_has_no_oversized_shard():
    assert plan({0: "a", 1: "a"}, {"a": 1.0}, loads={0: 1e12, 1: 1.0}).oversized == ()


def test_moved_does_not_count_first_placements():
    assert plan({0: None, 1: "gone"}, {"a": 1.0}, loads={0: 5.0, 1: 7.0}).moved == 7.0


def test_a_plan_cannot_be_changed():
    found = plan({0: None}, {"a": 1.0})
    for table in (found.placement, found.before, found.after):
        with pytest.raises(TypeError):
            table[0] = "b"


@pytest.mark.parametrize("weight", [0, -1, 0.0, float("nan"), float("inf"), True, "1", None])
def test_a_weight_that_is_not_positive_is_refused(weight):
    for planned in (lambda s: plan({0: "a"}, s), lambda s: plan({0: "a"}, s, loads={0: 1.0}), lambda s: quotas(s, 1)):
        with pytest.raises(PlacementError, match="server 'b' has the weight"):
            planned({"a": 1.0, "b": weight})


def test_nowhere_to_go_is_refused():
    for planned in (lambda: plan({0: "a"}, {}), lambda: plan({}, {}, loads={}), lambda: place([0], {})):
        with pytest.raises(PlacementError, match="no active server"):
            planned()


@pytest.mark.parametrize("load", [-1.0, float("nan"), float("inf")])
def test_a_load_that_is_no_load_is_refused(load):
    with pytest.raises(PlacementError, match="shard 0 has the load"):
        plan({0: "a"}, {"a": 1.0}, loads={0: load})


@pytest.mark.parametrize("tolerance", [-0.1, float("nan"), float("inf")])
def test_a_tolerance_that_makes_no_sense_is_refused(tolerance):
    with pytest.raises(PlacementError, match="tolerance"):
        plan({0: "a"}, {"a": 1.0}, loads={0: 1.0}, tolerance=tolerance)


def test_no_shards_need_no_moves():
    empty = plan({}, {"a": 1.0}, loads={})
    assert (empty.moves, dict(empty.placement), empty.after) == ((), {}, {"a": 0.0})


def level_trying_everything(current, servers, *, loads, tolerance):
    """As `level`, but after each step every server that found no step is tried again."""
    shares = fair_shares(servers, math.fsum(loads.values()))
    piles = {name: levelling._Pile(name, servers[name], shares[name]) for name in sorted(servers)}
    for shard in sorted(current):
        piles[current[shard]].add(loads[shard])
        piles[current[shard]].movable.append((loads[shard], shard))
    for pile in piles.values():
        pile.movable.sort()
    placement, stuck, limit = dict(current), set(), (1 + tolerance) * (1 + NOISE)
    while over := [pile for pile in piles.values() if pile.full > limit and pile.name not in stuck]:
        fullest = max(over, key=lambda pile: pile.full)
        others = [pile for pile in piles.values() if pile is not fullest]
        step = levelling._fitting(fullest, others, limit) or levelling._easing(fullest, others, max(tolerance, NOISE))
        if step is None:
            stuck.add(fullest.name)
        else:
            fullest.give(step)
            placement[step.shard] = step.target.name
            stuck.clear()
    return placement


@given(
    st.integers(0, 10**6),
    st.integers(1, 10),
    st.integers(1, 50),
    st.sampled_from([0.7, 1.1, 3]),
    st.sampled_from([0, 0.02, 0.1]),
)
def test_servers_that_found_no_step_are_tried_again_when_that_can_help(seed, n_servers, n_shards, skew, tolerance):
    draw = random.Random(seed)
    servers = {f"s{number}": draw.choice([0.5, 1, 1, 2]) for number in range(n_servers)}
    loads = {shard: draw.paretovariate(skew) for shard in range(n_shards)}
    current = {shard: draw.choice(list(servers)) for shard in loads}
    found = levelling.level(current, servers, loads=loads, tolerance=tolerance)
    assert found == level_trying_everything(current, servers, loads=loads, tolerance=tolerance)


@given(st.integers(0, 1000), FLEETS, SHARDS, st.booleans())
def test_shards_that_cannot_move_now_stay_and_count_where_they_are(seed, servers, shards, weighed):
    draw = random.Random(seed)
    current = {shard: draw.choice(list(servers)) for shard in range(shards)}
    fixed = {shard for shard in current if draw.random() < 0.3}
    loads = {shard: draw.paretovariate(1.1) for shard in current} if weighed else None
    found = plan(current, servers, loads=loads, fixed=fixed)
    assert fixed.isdisjoint(move.shard for move in found.moves)
    assert set(found.placement) == set(current)
    if not weighed:
        held, pinned = Counter(found.placement.values()), Counter(current[shard] for shard in fixed)
        quota = quotas(servers, shards, held=Counter(current.values()))
        assert all(held[name] <= max(quota[name], pinned[name]) for name in servers)
