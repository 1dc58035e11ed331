"""The demo's GPT: shapes, causality, initialisation, arguments."""

import math

import pytest
import torch

from nanogpt_demo.model import GPT, GPTConfig, build, parameter_count

CONFIG = GPTConfig(vocab_size=11, n_layer=2, n_head=2, n_embd=16, block_size=8)


def tokens(rows: int = 3, length: int = 8) -> torch.Tensor:
    return torch.arange(rows * length).reshape(rows, length) % CONFIG.vocab_size


def test_shapes_with_and_without_targets():
    model = build(CONFIG, seed=1)
    logits, loss = model(tokens(), tokens())
    assert logits.shape == (3, 8, 11)
    assert loss.shape == ()
    assert model(tokens(length=5))[1] is None


def test_a_position_sees_no_later_token():
    model = build(CONFIG, seed=1)
    changed = tokens()
    changed[:, 5] = (changed[:, 5] + 1) % CONFIG.vocab_size
    before, after = model(tokens())[0], model(changed)[0]
    torch.testing.assert_close(before[:, :5], after[:, :5], rtol=0, atol=0)
    assert not torch.equal(before[:, 5:], after[:, 5:])


def test_embedding_and_head_are_one_tensor_counted_once():
    model = build(CONFIG, seed=1)
    assert model.head.weight is model.tokens.weight
    blocks = 2 * (12 * 16 * 16 + 2 * 16)
    assert parameter_count(model) == 11 * 16 + 8 * 16 + blocks + 16


def test_untrained_loss_is_that_of_guessing():
    loss = build(CONFIG, seed=1)(tokens(), tokens().roll(1, dims=1))[1]
    assert abs(loss.item() - math.log(CONFIG.vocab_size)) < 0.1


def test_initial_spread_is_that_of_gpt2():
    model = build(GPTConfig(vocab_size=500, n_layer=8, n_head=2, n_embd=64, block_size=8), seed=1)
    assert model.tokens.weight.std().item() == pytest.approx(0.02, rel=0.05)
    residual = model.blocks[0].mlp.proj.weight
    assert residual.std().item() == pytest.approx(0.02 / 4, rel=0.05)


def test_build_depends_on_the_seed_alone_and_leaves_the_global_generator():
    state = torch.get_rng_state()
    one, again, other = build(CONFIG, 1), build(CONFIG, 1), build(CONFIG, 2)
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(one.tokens.weight, again.tokens.weight)
    assert not torch.equal(one.tokens.weight, other.tokens.weight)


def test_dropout_acts_in_training_only():
    config = GPTConfig(vocab_size=11, n_layer=1, n_head=2, n_embd=16, block_size=8, dropout=0.5)
    model = build(config, seed=1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        assert not torch.equal(model(tokens())[0], model(tokens())[0])
    model.eval()
    assert torch.equal(model(tokens())[0], model(tokens())[0])


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"n_layer": 0}, ValueError, "n_layer must be at least 1, got 0"),
        ({"n_embd": 15}, ValueError, "n_embd must be a multiple of n_head=2, got 15"),
        ({"dropout": 1.0}, ValueError, r"dropout must be in \[0, 1\), got 1.0"),
        ({"block_size": 8.0}, TypeError, "block_size must be an integer, got 8.0"),
    ],
)
def test_bad_shapes_are_refused(changes, error, message):
    fields = {"vocab_size": 11, "n_layer": 2, "n_head": 2, "n_embd": 16, "block_size": 8}
    with pytest.raises(error, match=message):
        GPTConfig(**(fields | changes))


def test_too_long_a_context_is_refused():
    with pytest.raises(ValueError, match="idx must be at most block_size=8 tokens long, got 9"):
        GPT(CONFIG)(tokens(length=9))
