"""The shipped plan of the demo data."""

from src.prepare import demo
from src.prepare.demo import demo_plan


def test_no_validation_photograph_occurs_in_training():
    plan = demo_plan()
    seen = {"train": set(), "val": set()}
    for sequence in plan.sequences:
        seen[sequence.split] |= {sequence.background, *(p.photograph for p in sequence.pieces)}
    assert not seen["train"] & seen["val"]
    backgrounds = [sequence.background for sequence in plan.sequences]
    assert len(set(backgrounds)) == len(backgrounds)
    assert [sequence.split for sequence in plan.sequences] == ["train"] * 6 + ["val"] * 2
    assert {sequence.num_averaged for sequence in plan.sequences} == {7, 11}
    assert all(sequence.pieces for sequence in plan.sequences)
    assert all(side % 16 == 0 for side in plan.size)


def test_every_shipped_scene_can_be_built_and_is_sampled_finely_enough():
    plan = demo_plan()
    for index in range(len(plan.sequences)):
        scene, _ = demo.build_scene(plan, index, 123)
        assert 1.0 <= scene.photo_px <= 2.0
