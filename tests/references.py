"""What each model computes, by definition: one request and one candidate at a time, in float32.

Every function takes a ranker in evaluation mode, the events of one request without padding
(``events_nd``: what the event tower gives; ``age_n``), one candidate's item vector ``t_d`` and,
where it has links, the user's vector ``u_d``; it gives what the head reads of the history for that
candidate, o [d]. Written from the equations (of baselines in their papers, of LIME in
docs/model.md), with the ranker's weights and nothing else of its code.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from limerank.data.batch import Batch
from limerank.models import Ranker
from limerank.models.profile import COUNTS, FADINGS, GATES, OUTCOMES


def linear(layer: torch.nn.Linear, x: Tensor) -> Tensor:
    y = layer.weight @ x
    return y if layer.bias is None else y + layer.bias


def layer_norm(layer: torch.nn.LayerNorm, x: Tensor) -> Tensor:
    centred = x - x.mean()
    return centred / (centred.square().mean() + layer.eps).sqrt() * layer.weight + layer.bias


def feed(layer, x: Tensor) -> Tensor:
    norm, up, _, _, down = layer.layers
    return linear(down, F.silu(linear(up, layer_norm(norm, x))))


def bucket(age: float) -> int:
    return min(int(4 * math.log2(1 + 24 * age)), 47)


def aged(ranker, events_nd: Tensor, age_n: Tensor) -> list[Tensor]:
    """Events with the embedding of their age."""
    ages = [ranker.ages.weight[bucket(float(age))] for age in age_n]
    return [e + a for e, a in zip(events_nd, ages, strict=True)]


def attend(q: Tensor, keys: list[Tensor], values: list[Tensor], bias: list[Tensor]) -> Tensor:
    """Softmax attention of one head; zeros where there is nothing to read."""
    if not keys:
        return torch.zeros_like(q)
    logits = [q @ k / math.sqrt(len(q)) + b for k, b in zip(keys, bias, strict=True)]
    weights = torch.stack(logits).softmax(0)
    return sum(w * v for w, v in zip(weights, values, strict=True))


def halves(x: Tensor, parts: int) -> list[Tensor]:
    return list(x.chunk(parts))


def candidate_attention(ranker, read: list[Tensor], age: list[Tensor], rate_h, t_d: Tensor):
    heads = ranker.config.heads
    start, query = halves(linear(ranker.start_query, t_d), 2)
    pairs = [halves(linear(ranker.key_value, e), 2) for e in read]
    found = []
    for h, q in enumerate(halves(query, heads)):
        keys = [halves(k, heads)[h] for k, _ in pairs]
        values = [halves(v, heads)[h] for _, v in pairs]
        found.append(attend(q, keys, values, [-rate_h[h] * a for a in age]))
    y = start + linear(ranker.out, torch.cat(found))
    return layer_norm(ranker.norm, y + feed(ranker.feed, y))


def mha(ranker, events_nd: Tensor, age_n: Tensor, t_d: Tensor) -> Tensor:
    return candidate_attention(ranker, list(events_nd), list(age_n), ranker.log_rate.exp(), t_d)


def truncated_mha(ranker, events_nd: Tensor, age_n: Tensor, t_d: Tensor) -> Tensor:
    most = ranker.config.events
    return mha(ranker, events_nd[-most:], age_n[-most:], t_d)


def lrea(ranker, events_nd: Tensor, age_n: Tensor, t_d: Tensor) -> Tensor:
    events = aged(ranker, events_nd, age_n)
    n, slots = len(events), []
    for slot in range(ranker.config.slots if n else 0):
        position = ranker.projection.weight[:, slot]
        total = sum(position[n - 1 - j] * e for j, e in enumerate(events))
        slots.append(layer_norm(ranker.norm_slots, total / math.sqrt(n)))
    zero = torch.zeros(())
    rates = [zero] * ranker.config.heads
    return candidate_attention(ranker, slots, [zero] * len(slots), rates, t_d)


def din(ranker, events_nd: Tensor, age_n: Tensor, t_d: Tensor) -> Tensor:
    pooled = torch.zeros_like(t_d)
    for e in aged(ranker, events_nd, age_n):
        x = (
            linear(ranker.of_event, e)
            + linear(ranker.of_item, t_d)
            + linear(ranker.of_both, e * t_d)
        )
        x = torch.where(x > 0, x, ranker.slope.weight * x)
        pooled = pooled + linear(ranker.unit, x) * e
    return pooled


def sasrec(ranker, events_nd: Tensor, age_n: Tensor, t_d: Tensor) -> Tensor:
    n = len(events_nd)
    if n == 0:
        return torch.zeros_like(t_d)
    x = [e + ranker.positions.weight[n - 1 - j] for j, e in enumerate(events_nd)]
    for block in ranker.stack:
        qkv = [halves(linear(block.qkv, layer_norm(block.norm, one)), 3) for one in x]
        new = []
        for i in range(n):
            found = []
            for h in range(block.heads):
                q, keys, values = (
                    halves(qkv[i][0], block.heads)[h],
                    [halves(qkv[j][1], block.heads)[h] for j in range(i + 1)],
                    [halves(qkv[j][2], block.heads)[h] for j in range(i + 1)],
                )
                found.append(attend(q, keys, values, [torch.zeros(())] * (i + 1)))
            one = x[i] + linear(block.out, torch.cat(found))
            new.append(one + feed(block.feed, one))
        x = new
    return layer_norm(ranker.norm, x[-1])


def hstu(ranker, events_nd: Tensor, age_n: Tensor, t_d: Tensor) -> Tensor:
    """The candidate is one more position at the end: it stands where the newest event does."""
    n = len(events_nd)
    x, age = [*events_nd, t_d], [*age_n.tolist(), 0.0]
    for position, block in enumerate(ranker.stack):
        uqkv = [halves(F.silu(linear(block.uqkv, layer_norm(block.norm, one))), 4) for one in x]
        new = []
        for i in range(n + 1):
            found = []
            for h in range(block.heads):
                q = halves(uqkv[i][1], block.heads)[h]
                read = torch.zeros_like(q)
                for j in range(i + 1):
                    k, v = (halves(uqkv[j][part], block.heads)[h] for part in (2, 3))
                    time = bucket(max(age[j] - age[i], 0.0))
                    bias = (
                        ranker.of_position.weight[i - j, position]
                        + ranker.of_time.weight[time, position]
                    )
                    read = read + F.silu(q @ k / math.sqrt(len(q)) + bias) * v / (n + 1)
                found.append(read)
            gated = layer_norm(block.norm_read, torch.cat(found)) * uqkv[i][0]
            new.append(x[i] + linear(block.out, gated))
        x = new
    return layer_norm(ranker.norm, x[-1])


def contextualised(ranker, u_d: Tensor) -> list[Tensor]:
    links = []
    for link in ranker.links:
        inner = F.silu(linear(ranker.context_in, torch.cat([link, u_d])))
        links.append(link + linear(ranker.context_out, inner))
    return links


def heard(evidence, link: int, n: int) -> Tensor:
    return n / (n + evidence.log_prior[link].exp())


def read(reading, links: list[Tensor], events: list[Tensor], age_n: Tensor) -> list[Tensor]:
    """The links after they have read the events for good."""
    heads, new = reading.heads, []
    pairs = [halves(linear(reading.key_value, e), 2) for e in events]
    for position, link in enumerate(links):
        found = []
        for h, q in enumerate(halves(linear(reading.query, link), heads)):
            shares = (-reading.log_rate[h, position].exp() * age_n).softmax(0)
            total = torch.zeros_like(q)
            for share, (key, value) in zip(shares, pairs, strict=True):
                k, v = halves(key, heads)[h], halves(value, heads)[h]
                total = total + share * F.silu(q @ k / math.sqrt(len(q))) * v
            found.append(total)
        x = torch.cat(found)
        x = x / (x.square().mean() + (2 * reading.norm_read.log_floor).exp()).sqrt()
        link = link + linear(reading.out, x) * heard(reading.evidence, position, len(events))
        new.append(link + feed(reading.feed, link))
    return new


def of_links(ranker, links: list[Tensor], t_d: Tensor) -> Tensor:
    """What a candidate takes of personalised links, by its weights of the raw ones."""
    heads, found = ranker.config.heads, []
    personal = [halves(layer_norm(ranker.norm, link), heads) for link in links]
    keys = [halves(linear(ranker.link_key, link), heads) for link in ranker.links]
    zero = [torch.zeros(())] * len(links)
    for h, q in enumerate(halves(linear(ranker.item_query, t_d), heads)):
        found.append(attend(q, [key[h] for key in keys], [link[h] for link in personal], zero))
    return torch.cat(found)


def lime_mha(ranker, events_nd: Tensor, age_n: Tensor, t_d: Tensor, u_d: Tensor) -> Tensor:
    links = read(ranker.reading, contextualised(ranker, u_d), list(events_nd), age_n)
    return of_links(ranker, links, t_d)


def lime_xor(ranker, events_nd: Tensor, age_n: Tensor, t_d: Tensor, u_d: Tensor) -> Tensor:
    """Blocks over [links ; events] in which only links and events see each other."""
    x = [*contextualised(ranker, u_d), *aged(ranker, events_nd, age_n)]
    links = len(ranker.links)
    for block in ranker.stack:
        normal = [layer_norm(block.norm, one) for one in x]
        uq = [halves(F.silu(linear(block.uq, one)), 2) for one in normal]
        kv = [halves(F.silu(linear(block.kv, one)), 2) for one in normal]
        new = []
        for i, one in enumerate(x):
            seen = [j for j in range(len(x)) if (i < links) != (j < links)]
            found = []
            for h, q in enumerate(halves(uq[i][1], block.heads)):
                total = torch.zeros_like(q)
                for j in seen:
                    k, v = (halves(part, block.heads)[h] for part in kv[j])
                    total = total + F.silu(q @ k / math.sqrt(len(q))) / len(seen) * v
                found.append(total)
            gated = linear(block.out, layer_norm(block.norm_read, torch.cat(found)) * uq[i][0])
            new.append(one + gated * (heard(block.evidence, i, len(seen)) if i < links else 1))
        x = new
    return of_links(ranker, read(ranker.reading, x[:links], x[links:], age_n), t_d)


def profile(of, users, vectors: Tensor, b: int, n: int) -> tuple[Tensor, Tensor]:
    """What the profile of the first n events of a history adds to first-layer sums [g], and its
    query [K, S]."""
    size, outputs = of.size, of.mix.out_features
    zero = of.mix.weight.new_zeros
    tokens, items = users.tokens[b, :n], users.items[b, :n]
    table = of.outcomes.weight
    outcomes, keys = [], []
    for fading in FADINGS:
        weights = [fading ** (n - 1 - j) for j in range(n)]
        mean, mean_of_gates = zero(OUTCOMES), zero(GATES, size)
        for j, weight in enumerate(weights):
            row = table[tokens[j]].sum(0)
            key = of.key.weight @ vectors[items[j]]
            share = weight / sum(weights)
            mean = mean + share * row[:OUTCOMES]
            mean_of_gates = mean_of_gates + share * row[OUTCOMES:, None] * key
        outcomes.append(mean)
        keys.append(mean_of_gates)
    of_outcomes, of_keys = n / (n + of.log_prior.exp())
    at = float(np.interp(math.log2(1 + n), COUNTS, np.arange(len(COUNTS))))
    near = (1 - (zero(len(COUNTS)) + torch.arange(len(COUNTS)) - at).abs()).clamp(min=0)
    first = of.network(torch.cat([of_outcomes * torch.cat(outcomes), near]))
    queries = []
    for k in range(outputs):
        query = zero(size)
        for f in range(len(FADINGS)):
            for g in range(GATES):
                query = query + of.mix.weight[k, f * GATES + g] * of_keys * keys[f][g]
        queries.append(query)
    return first, torch.stack(queries)


WITH_LINKS = {"lime-mha": lime_mha, "lime-xor": lime_xor}
REFERENCES = {
    **WITH_LINKS,
    "mha": mha,
    "truncated-mha": truncated_mha,
    "lrea": lrea,
    "din": din,
    "sasrec": sasrec,
    "hstu": hstu,
}


def logits(ranker: Ranker, batch: Batch) -> list[Tensor]:
    """Logits [K] of every real candidate, request by request."""
    model, found = ranker.config.model, []
    vectors = ranker.item_vectors(batch.items)
    events = ranker.event_tower(batch.users, vectors)
    u, c = ranker.user_tower(batch.users)
    head = ranker.head
    for b, count in enumerate(batch.counts.tolist()):
        n = int(batch.users.lengths[b])
        for m in range(count):
            t_d = vectors[batch.candidates[b, m]]
            of_user = (u[b],) if model in WITH_LINKS else ()
            o_d = REFERENCES[model](ranker, events[b, :n], batch.users.age[b, :n], t_d, *of_user)
            a = linear(head.from_links, o_d) + linear(head.from_item, t_d)
            a = a + linear(head.from_user, u[b]) + linear(head.from_context, c[b])
            of_profile = None
            if model in WITH_LINKS and ranker.profile is not None:
                of_profile = profile(ranker.profile, batch.users, vectors, b, n)
                a = a + of_profile[0]
            first, gate = a.chunk(2)
            z = linear(head.out, F.relu(first) * gate)
            if of_profile is not None:
                z = z + of_profile[1] @ linear(ranker.profile.key, t_d) / ranker.profile.size**0.5
            found.append(z)
    return found
