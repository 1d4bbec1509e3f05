"""DefiNet from its equations, one edge at a time, in double precision: slow, and independent of the package.

Written from the equations alone, over a flat dictionary of arrays with the names of a checkpoint.
"""

from __future__ import annotations

import itertools
import math

import numpy as np


def brute_force_edges(positions, cell, pbc, *, cutoff, cap, shell_tolerance=0.01):
    """Return (i, j, S) of every image j within the cutoff of i, at most ``cap`` per site in whole shells."""
    images = [range(-3, 4) if periodic else (0,) for periodic in pbc]
    edges = []
    for i in range(len(positions)):
        found = []
        for j, shift in itertools.product(range(len(positions)), itertools.product(*images)):
            distance = math.dist(positions[j] + np.array(shift) @ cell, positions[i])
            if 1e-6 < distance < cutoff:
                found.append((distance, j, shift))
        found.sort()
        if cap is not None and len(found) > cap:
            first_out = found[cap][0]
            found = [entry for entry in found if entry[0] < first_out - shell_tolerance]
        edges += [(i, j, shift) for _, j, shift in found]
    return edges


def displacement(weights, sizes, positions, cell, *, edges, numbers, host_numbers, kinds):  # noqa: C901, PLR0915 - read it top to bottom
    """Return the displacement of every site of one structure, empty sites included."""

    def linear(name, x):
        y = weights[f"{name}.weight"] @ x
        return y + weights[f"{name}.bias"] if f"{name}.bias" in weights else y

    def sigma(x):
        return x / (1 + np.exp(-x)) / 0.6

    def two(name, x):
        return linear(f"{name}.2", sigma(linear(f"{name}.0", x)))

    def vector_linear(name, v):
        return np.stack([linear(name, v[axis]) for axis in range(3)])

    def activation(name, v):
        l_, c = vector_linear(f"{name}.lin_vec", v), vector_linear(f"{name}.lin_gvec", v)[:, 0]
        out = l_.copy()
        for f in range(l_.shape[1]):
            if l_[:, f] @ c < 0:
                out[:, f] = (l_[:, f] + c) / 2
        return out

    def radial(d):
        spacing = 1 / (sizes.n_radial - 1)
        u = d / sizes.radial_range
        envelope = 1 - 21 * u**5 + 35 * u**6 - 15 * u**7
        return np.array(
            [math.exp(-0.5 * ((u - k * spacing) / spacing) ** 2) * envelope for k in range(sizes.n_radial)]
        )

    width, n = sizes.features, len(positions)
    r = [np.array(p, dtype=float) for p in positions]
    z = [host_numbers[i] if kinds[i] == 2 else numbers[i] for i in range(n)]
    k = [weights["defect_emb.embeddings.weight"][kinds[i]] for i in range(n)]
    x = [linear("lin_comb", np.concatenate([weights["atom_emb.embeddings.weight"][z[i]], k[i]])) for i in range(n)]
    v = [np.zeros((3, width)) for _ in range(n)]
    x_global, v_global = weights["vn_emb.weight"][0], np.zeros((3, width))
    for layer in range(sizes.layers):
        scalar_node, vector_node = f"virtual_scalar_layers.{layer}", f"virtual_vector_layers.{layer}"
        passing, updating = f"message_passing_layers.{layer}", f"message_update_layers.{layer}"
        moving = f"coord_update_layers.{layer}"
        start = [p.copy() for p in r]
        # 1
        for i in range(n):
            x[i] = x[i] + sigma(two(f"{scalar_node}.mlp_node", np.concatenate([x[i], x_global])))
            v[i] = v[i] + vector_linear(f"{vector_node}.mlp_node", v[i] + v_global)
        # 2
        h = [two(f"{passing}.x_proj", x[i]) for i in range(n)]
        gate = [linear(f"{passing}.defect_proj", k[i]) for i in range(n)]
        dx, dv = [np.zeros(width) for _ in range(n)], [np.zeros((3, width)) for _ in range(n)]
        for i, j, shift in edges:
            span = start[i] - (start[j] + np.array(shift) @ cell)
            d = np.linalg.norm(span)
            message = h[j] * (gate[j] + gate[i]) * linear(f"{passing}.edge_proj", radial(d)) / math.sqrt(3)
            p, q, s = message[:width], message[width : 2 * width], message[2 * width :]
            dx[i] += s
            for axis in range(3):
                dv[i][axis] += (p * v[j][axis] + q * span[axis] / d) / math.sqrt(width)
        for i in range(n):
            x[i] = (x[i] + dx[i]) / math.sqrt(2)
            v[i] = v[i] + activation(f"{passing}.vec_activation", dv[i])
        # 3
        for i in range(n):
            both = vector_linear(f"{updating}.vec_proj", v[i])
            v1, v2 = both[:, :width], both[:, width:]
            length = np.sqrt((v2**2).sum(axis=0) + 1e-8)
            b = two(f"{updating}.xvec_proj", np.concatenate([x[i], length]))
            b1, b2, b3 = b[:width], b[width : 2 * width], b[2 * width :]
            x[i] = (x[i] + b2 / math.sqrt(2) + x[i] * np.tanh(b3)) / math.sqrt(2)
            v[i] = v[i] + activation(f"{updating}.vec_activation", b1 * v1)
        # 4
        u = [two(f"{moving}.x_proj", x[i]) for i in range(n)]
        gate = [linear(f"{moving}.defect_proj", k[i]) for i in range(n)]
        for i in range(n):
            r[i] = r[i] + 0.5 * vector_linear(f"{moving}.lin_vec2coord", v[i])[:, 0]
        for i, j, shift in edges:
            span = start[i] - (start[j] + np.array(shift) @ cell)
            d = np.linalg.norm(span)
            pair = u[j] * linear(f"{moving}.edge_proj", radial(d)) * (gate[j] + gate[i])
            r[i] = r[i] + 0.5 * two(f"{moving}.coord_mlp", pair)[0] * span / d
        # 5
        x_mean, v_mean = sum(x) / n, sum(v) / n
        x_global = x_global + sigma(two(f"{scalar_node}.mlp_vn", np.concatenate([x_mean, x_global])))
        v_global = v_global + vector_linear(f"{vector_node}.mlp_vn", v_mean + v_global)
    return np.stack(r) - np.asarray(positions)
