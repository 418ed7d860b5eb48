"""RMI from its definition, in float64 NumPy: slow, no trick of `jaxseg.losses`, to test against.

Zhao et al. (arXiv 1910.12037): regions as points, covariances un-normalised (sums over the n regions), α and the pivot
offset as in the authors' code.
"""

import numpy as np

ALPHA, LEAST_PROB, PIVOT_OFFSET = 5e-4, 1e-6, 1e-8


def sigmoid(x):
    x = np.asarray(x, np.float64)
    return np.where(x >= 0, 1 / (1 + np.exp(-np.abs(x))), np.exp(-np.abs(x)) / (1 + np.exp(-np.abs(x))))


def window(x, row, column, size):
    """The part of the window that starts at (row, column), which may lie outside, that is inside x [h, w]."""
    return x[max(row, 0) : max(row + size, 0), max(column, 0) : max(column + size, 0)]


def pooled(x, pool, size, is_label):
    """x [h, w] downsampled, window by window."""
    h, w = x.shape
    if pool == "none" or size == 1:
        return x
    if pool == "interpolate":
        rows, columns = h // size, w // size
        out = np.zeros((rows, columns))
        for i in range(rows):
            for j in range(columns):
                if is_label:
                    out[i, j] = x[min(i * h // rows, h - 1), min(j * w // columns, w - 1)]
                else:
                    out[i, j] = bilinear(x, i * (h - 1) / max(rows - 1, 1), j * (w - 1) / max(columns - 1, 1))
        return out
    before = size // 2
    rows, columns = ((n + 2 * before - size) // size + 1 for n in (h, w))
    out = np.zeros((rows, columns))
    for i in range(rows):
        for j in range(columns):
            inside = window(x, i * size - before, j * size - before, size)
            out[i, j] = inside.max() if pool == "max" else inside.sum() / size**2
    return out


def bilinear(x, row, column):
    low_row, low_column = min(int(row), x.shape[0] - 1), min(int(column), x.shape[1] - 1)
    high_row, high_column = min(low_row + 1, x.shape[0] - 1), min(low_column + 1, x.shape[1] - 1)
    a, b = row - low_row, column - low_column
    top = (1 - b) * x[low_row, low_column] + b * x[low_row, high_column]
    bottom = (1 - b) * x[high_row, low_column] + b * x[high_row, high_column]
    return (1 - a) * top + a * bottom


def points(x, radius):
    """Each radius × radius region as a column, centred over the regions."""
    h, w = (n - radius + 1 for n in x.shape)
    columns = [x[i : i + radius, j : j + radius].ravel() for i in range(h) for j in range(w)]
    columns = np.array(columns).T
    return columns - columns.mean(1, keepdims=True)


def covariances(truth, prob, radius):
    """Σyy, Σyp, Σpp of two maps [h, w]."""
    y, p = points(truth, radius), points(prob, radius)
    return y @ y.T, y @ p.T, p @ p.T


def rmi_of_maps(truth, prob, radius):
    """½ log det(M + αI) / d with M = Σyy - Σyp (Σpp + αI)⁻¹ Σypᵀ, as the paper writes it."""
    yy, yp, pp = covariances(truth, prob, radius)
    ridge = ALPHA * np.eye(radius**2)
    m = yy - yp @ np.linalg.inv(pp + ridge) @ yp.T
    return np.log(np.diag(np.linalg.cholesky(m + ridge)) + PIVOT_OFFSET).mean()


def stable_bound_of_maps(truth, prob, radius):
    """The same by least squares and singular values, without covariances (and without the pivot offset).

    Where covariances are nearly singular, the paper's formula loses digits in float64 too.
    """
    y, p = points(truth, radius), points(prob, radius)
    d = len(y)
    stacked = np.concatenate([p, np.sqrt(ALPHA) * np.eye(d)], 1)
    weights = np.linalg.lstsq(stacked.T, np.concatenate([y, np.zeros((d, d))], 1).T, rcond=None)[0].T
    factors = [y - weights @ p, np.sqrt(ALPHA) * weights, np.sqrt(ALPHA) * np.eye(d)]
    return np.log(np.linalg.svd(np.concatenate(factors, 1), compute_uv=False)).mean()


def lower_bound(logits, label, *, radius=3, pool="max", pool_size=3):
    """[b, c], the arguments of `jaxseg.losses.rmi.rmi_lower_bound`."""
    b, _, _, c = logits.shape
    out = np.zeros((b, c))
    for i in range(b):
        valid = (label[i] >= 0) & (label[i] < c)
        for k in range(c):
            truth = pooled(((label[i] == k) & valid).astype(np.float64), pool, pool_size, is_label=True)
            prob = pooled(sigmoid(logits[i, ..., k]) * valid + LEAST_PROB, pool, pool_size, is_label=False)
            out[i, k] = rmi_of_maps(truth, prob, radius)
    return out
