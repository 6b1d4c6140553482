"""Flow prenet: causality and padding."""

from __future__ import annotations

import jax
import numpy as np

from ba_jax.models.flow_prenet import FlowPrenet


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_causality_by_gradient(config, variables):
    params = {c: v["flow_prenet"] for c, v in variables.items() if "flow_prenet" in v}

    def mu(x):
        return FlowPrenet(config.flow_prenet).apply(params, x, np.array([6], np.int32))[0][0]

    jacobian = np.abs(np.asarray(jax.jit(jax.jacobian(mu))(noise(1, 6, 32)))).sum(axis=(1, 2, 4))
    assert (jacobian[np.triu_indices(6, 1)] == 0).all()
    assert (jacobian[np.tril_indices(6)] > 0).all()


def test_padding_changes_nothing(run):
    h_BTC, padded_BTC = noise(1, 7, 32, seed=2), np.full((2, 11, 32), np.nan, np.float32)
    padded_BTC[0, :7] = h_BTC[0]

    def prenet(model, *args):
        return model.flow_prenet(*args)

    got, _ = run(prenet, padded_BTC, np.array([7, 0], np.int32))
    want, _ = run(prenet, h_BTC, np.array([7], np.int32))
    np.testing.assert_allclose(got[0, :7], want[0], atol=1e-5)
    assert (np.asarray(got[0, 7:]) == 0).all() and (np.asarray(got[1]) == 0).all()
