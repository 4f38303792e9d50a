"""The eight methods once more, straight from their equations: dense matrices, one window and one voxel at a time.

Nothing here is shared with the package. Slow and large (N^2 numbers), for volumes up to about 14 x 14 x 14.
"""

from __future__ import annotations

import itertools

import numpy as np


def features(image, intensity_range=(-1000.0, 400.0), channel_axis=None):
    image = np.asarray(image, dtype=float)
    image = image[..., None] if channel_axis is None else np.moveaxis(image, channel_axis, -1)
    low, high = intensity_range
    return (np.clip(image, low, high) - low) / (high - low)


def coordinates(shape, spacing):
    index = np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing="ij"), axis=-1).reshape(-1, len(shape))
    x = index * np.asarray(spacing, dtype=float)
    return x / ((np.array(shape) - 1) * np.asarray(spacing)).max()


def all_windows(shape):
    """Flat voxel indices of every window of 3 voxels along every axis that lies wholly inside the grid."""
    index = np.arange(np.prod(shape)).reshape(shape)
    for corner in itertools.product(*[range(n - 2) for n in shape]):
        yield index[tuple(slice(o, o + 3) for o in corner)].ravel()


def cf_laplacian(f, epsilon=1e-7):
    flat = f.reshape(-1, f.shape[-1])
    L = np.zeros((len(flat), len(flat)))
    for w in all_windows(f.shape[:-1]):
        L[np.ix_(w, w)] += np.eye(len(w)) - affinity(flat[w], epsilon)
    return L


def affinity(x, epsilon):
    m, c = x.shape
    d = x - x.mean(axis=0)
    return (1 + d @ np.linalg.solve(d.T @ d / m + epsilon / m * np.eye(c), d.T)) / m


def lb_laplacian(f, epsilon=1e-7):
    flat = f.reshape(-1, f.shape[-1])
    L = np.zeros((len(flat), len(flat)))
    for w in all_windows(f.shape[:-1]):
        X = np.hstack([flat[w], np.ones((len(w), 1))])
        K = X @ X.T
        R = np.eye(len(w)) - np.linalg.solve(K + epsilon * np.eye(len(w)), K)
        L[np.ix_(w, w)] += R @ R.T
    return L


def neighbors_of(points, i, k, among):
    among = among[among != i]
    distance = ((points[among] - points[i]) ** 2).sum(axis=1)
    return among[np.argsort(distance, kind="stable")[:k]]


def knn_affinity(f, x, passes, kernel="soft", among=None, kernel_weight=None):
    n = len(f)
    W = np.zeros((n, n))
    among = np.arange(n) if among is None else among
    for k, w in passes:
        g = np.hstack([f, w * x])
        h = g if kernel_weight is None else np.hstack([f, kernel_weight * x])
        for i in among:
            for j in neighbors_of(g, i, k, among):
                W[i, j] += 1.0 if kernel == "binary" else max(0.0, 1 - np.abs(h[i] - h[j]).sum() / h.shape[1])
    return (W + W.T) / 2


def graph_laplacian(W):
    return np.diag(W.sum(axis=1)) - W


def lle_weights(f, i, neighbors, reg=1e-6):
    N = f[neighbors] - f[i]
    w = np.linalg.solve(N @ N.T + reg * np.eye(len(N)), np.ones(len(N)))
    return w / w.sum()


def if_system(f, x, trimap, known_to_unknown=True, reg=1e-6, epsilon=1e-6):
    shape, flat, t = f.shape[:-1], f.reshape(-1, f.shape[-1]), trimap.ravel()
    n, c = flat.shape
    unknown = np.flatnonzero(t == 128)

    R = np.zeros((len(unknown), n))
    for row, u in enumerate(unknown):
        near = neighbors_of(np.hstack([flat, x]), u, 20, np.arange(n))
        R[row, near] = -lle_weights(flat, u, near, reg)
        R[row, u] += 1
    L_cm = R.T @ R

    A = np.zeros((n, n))
    for w in all_windows(shape):
        if (t[w] == 128).any():  # its centre lies in the unknown region dilated by one window
            A[np.ix_(w, w)] += affinity(flat[w], epsilon)
    total = A.sum(axis=1, keepdims=True)
    W = np.divide(A, total, out=np.zeros_like(A), where=total > 0)
    L_local = np.diag(W.sum(axis=1)) - W

    W_iu = knn_affinity(flat, x, ((5, 0.05), (1, 0.0005)), among=unknown, kernel_weight=0.0005)
    L = L_cm + L_local + 0.01 * graph_laplacian(W_iu)
    pull = np.zeros(n)
    if known_to_unknown:
        foreground, background = np.flatnonzero(t == 255), np.flatnonzero(t == 0)
        g = np.hstack([flat, 10 * x])
        for u in unknown:
            sides = [neighbors_of(g, u, 7, side) for side in (foreground, background)]
            weight = lle_weights(flat, u, np.concatenate(sides), reg)
            w_f, w_b = weight[: len(sides[0])], weight[len(sides[0]) :]
            confidence = ((w_f @ flat[sides[0]] - w_b @ flat[sides[1]]) ** 2).sum() / c
            L[u, u] += 0.05 * confidence
            pull[u] += 0.05 * confidence * w_f.sum()
    return L, pull


def q(hu, level=-600.0, width=1500.0):
    return np.clip((hu - (level - width / 2)) / width, 0, 1)


def pair(
    image,
    trimap,
    base,
    spacing,
    intensity_range=(-1000.0, 400.0),
    window=(-600.0, 1500.0),
    weight=100.0,
    channel_axis=None,
    prior=None,
    **parameters,
):
    """The mattes of a method and of its "+" on the whole grid, by a dense direct solve.

    ``prior`` has (p, trust, a method's weight), of which both mattes are pulled towards the same p.
    """
    f = features(image, intensity_range, channel_axis)
    flat, x = f.reshape(-1, f.shape[-1]), coordinates(trimap.shape, spacing)
    t = trimap.ravel()
    pull = np.zeros(len(t))
    if base == "cf":
        L = cf_laplacian(f, **parameters)
    elif base == "lb":
        L = lb_laplacian(f, **parameters)
    elif base == "knn":
        ks, ws = parameters.get("neighbors", (20, 10)), parameters.get("spatial_weights", (2.0, 0.1))
        kernel = parameters.get("kernel", "soft")
        L = graph_laplacian(knn_affinity(flat, x, tuple(zip(ks, ws, strict=True)), kernel))
    else:
        L, pull = if_system(f, x, trimap, **parameters)
    hu = image if channel_axis is None else np.moveaxis(image, channel_axis, -1)[..., 0]
    foreground = t == 255
    S = np.stack([foreground, np.where(foreground, q(hu.ravel().astype(float), *window), 0)], axis=1).astype(float)
    D = (t != 128).astype(float)
    T, p = weight * D, S
    if prior is not None:
        unknown = t == 128
        T[unknown] = prior[2] * np.median(np.diag(L)[unknown]) * prior[1].ravel()[unknown]
        p = np.where(unknown[:, None], prior[0].reshape(-1, 1), S)
    a = np.linalg.solve(L + np.diag(T), T[:, None] * p + pull[:, None])
    a = np.where(t[:, None] == 128, np.clip(a, 0, 1), S)
    return a[:, 0].reshape(trimap.shape), a[:, 1].reshape(trimap.shape)


def alpha(image, trimap, method, spacing, **arguments):
    plain, plus = pair(image, trimap, method.removesuffix("+"), spacing, **arguments)
    return plus if method.endswith("+") else plain
