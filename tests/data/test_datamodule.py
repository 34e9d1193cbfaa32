"""Laws of the data module: split, order, ranks, both engines, Lightning's view."""

import gc
import weakref
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader

from resnet_se.data import loaders
from resnet_se.data.augmentation.pipeline import Augmentation
from resnet_se.data.datamodule import ImageDataModule
from resnet_se.data.decode import decoder
from resnet_se.data.loaders import (
    AugmentedImages,
    ImagesInOrder,
    ShuffledBatches,
)
from resnet_se.data.normalisation import normalise
from resnet_se.data.sources import ImageSet
from resnet_se.data.splits import fold_split, stratified_split, train_val_split
from resnet_se.data.synthetic import Synthetic
from resnet_se.utils.errors import UserError
from tests.data.test_augmentation import ALL, PAPER, random_images

CPU = torch.device("cpu")


class Source:
    """Random images of three classes."""

    def __init__(self, num_train=150, num_test=31, size=(8, 12)):
        self.sizes = num_train, num_test, size

    def key(self):
        return "random"

    def load(self):
        num_train, num_test, size = self.sizes
        images = random_images(num_train + num_test, *size)
        train, test = images[:num_train].clone(), images[num_train:].clone()
        self.undivided = weakref.ref(train)
        labels = [torch.arange(len(part)) % 3 for part in (train, test)]
        return ImageSet(
            "random", "a test", ("a", "b", "c"), train, labels[0], test, labels[1]
        )


SMALL = Augmentation(rotation=15, shift=0.1, crop_padding=2, flip=0.5, jitter=0.1)


def module(engine="batched", rank=0, world=1, source=None, **options):
    """A data module set up as rank `rank` of a trainer with `world` devices."""
    options = {"augment": SMALL, "batch_size": 16, "num_workers": 0} | options
    data = ImageDataModule(source or Source(), engine=engine, **options)
    data.trainer = SimpleNamespace(
        global_rank=rank,
        world_size=world,
        current_epoch=0,
        strategy=SimpleNamespace(root_device=CPU),
    )
    data.setup()
    return data


def epoch_of(data, epoch=0):
    """Finished (images, labels) of an epoch's batches, as a training step gets them."""
    loader = data.train_dataloader()
    loader.sampler.set_epoch(epoch)
    found = [data.on_after_batch_transfer(batch, 0) for batch in loader]
    assert len(found) == len(loader)
    return found


def together(batches):
    images, labels = zip(*batches, strict=True)
    return torch.cat(images), torch.cat(labels)


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


# --- both engines ------------------------------------------------


@pytest.mark.parametrize("engine", ["batched", "torchvision"])
def test_an_epoch_is_every_image_once_and_finished(engine):
    data = module(engine, augment=Augmentation(), batch_size=9)
    images, labels = data.train_part
    assert len(images) == 135
    found, theirs = together(epoch_of(data, 3))
    assert found.dtype == torch.float32
    order = data.train_dataloader().sampler
    order.set_epoch(3)
    index = order.indices().flatten()
    assert sorted(index.tolist()) == list(range(135))
    assert torch.equal(found, normalise(images[index], *data.statistics))
    assert torch.equal(theirs, labels[index])


def test_engines_are_identical_without_randomness():
    ours, theirs = (
        module(e, augment=Augmentation()) for e in ("batched", "torchvision")
    )
    for epoch in (0, 1):
        pairs = zip(epoch_of(ours, epoch), epoch_of(theirs, epoch), strict=True)
        assert all(same(a, b) for a, b in pairs)
    for name in ("val_dataloader", "test_dataloader"):
        pairs = zip(getattr(ours, name)(), getattr(theirs, name)(), strict=True)
        for a, b in pairs:
            finished = [data.on_after_batch_transfer(a, 0) for data in (ours, theirs)]
            assert same(a, b)
            assert same(*finished)


def test_engines_take_the_same_images_and_flip_the_same_by_turns():
    augmentation = Augmentation(flip=0.5, alternate_flip=True)
    for epoch in (0, 1, 2):
        ours, theirs = (
            together(epoch_of(module(engine, augment=augmentation), epoch))
            for engine in ("batched", "torchvision")
        )
        assert same(ours, theirs)


def test_batches_are_the_description_applied_to_the_epochs_draws():
    data = module(seed=5, batch_size=32)
    images, labels = data.train_part
    draws = SMALL.draw(135, 8, 12, seed=5, epoch=2)
    index = _indices(data, 2).flatten()
    expected = SMALL.apply(images[index], draws.select(index))
    found, theirs = together(epoch_of(data, 2))
    # The same numbers in smaller batches, so that the last digits may differ.
    levels = found * 255 * data.std[:, None, None] + 255 * data.mean[:, None, None]
    torch.testing.assert_close(levels, expected, atol=2e-3, rtol=0)
    assert torch.equal(theirs, labels[index])


def _indices(data, epoch):
    sampler = data.train_dataloader().sampler
    sampler.set_epoch(epoch)
    return sampler.indices()


def test_an_augmented_image_does_not_depend_on_the_batch_size():
    def by_image(batch_size):
        data = module(batch_size=batch_size)
        index = _indices(data, 1).flatten().tolist()
        return dict(zip(index, together(epoch_of(data, 1))[0], strict=True))

    few, many = by_image(5), by_image(45)
    for i in few.keys() & many.keys():
        torch.testing.assert_close(few[i], many[i], atol=1e-4, rtol=0)


@pytest.mark.parametrize("engine", ["batched", "torchvision"])
def test_an_epoch_repeats_and_another_epoch_or_seed_differs(engine):
    data = module(engine)
    first = together(epoch_of(data, 1))
    torch.rand(1)  # whatever torch's own stream does between
    assert same(together(epoch_of(module(engine), 1)), first)
    for other in (epoch_of(data, 2), epoch_of(module(engine, seed=1), 1)):
        images = together(other)[0]
        assert not any(torch.equal(a, b) for a in images[:9] for b in first[0])


def test_an_epoch_leaves_torchs_stream_alone():
    data = module()
    torch.manual_seed(5)
    expected = torch.rand(4)
    torch.manual_seed(5)
    epoch_of(data)
    assert torch.equal(torch.rand(4), expected)


def test_batched_engine_gives_finished_batches():
    for images, labels in module().train_dataloader():
        assert images.shape == (16, 3, 8, 12)
        assert images.dtype == torch.float32
        assert images.is_contiguous(memory_format=torch.channels_last)
        assert labels.dtype == torch.int64
    assert abs(images.mean()) < 0.5  # normalised


@pytest.mark.parametrize("size", [(28, 28), (12, 20)])
def test_images_of_other_sizes(size):
    data = module(source=Source(size=size), augment=ALL)
    assert data.image_size == size
    assert together(epoch_of(data))[0].shape == (128, 3, *size)


def test_a_training_part_is_there_once():
    source = Source()
    data = module(source=source)
    gc.collect()
    assert source.undivided() is None  # its parts are copies
    assert data.train_dataloader().images is data.train_part[0]
    assert data.val_dataloader().images.data_ptr() == data.val_part[0].data_ptr()
    facts = data.describe()
    assert (facts["train"], facts["val"], facts["test"]) == (135, 15, 31)
    assert facts["fingerprint"] == source.load().fingerprint


def test_images_are_shared_and_not_read_again():
    data = module(seed=5, batch_size=32)
    unread = ImageDataModule(None, SMALL, seed=5, batch_size=32)
    unread.share_images(data)
    unread.setup()
    assert unread.train_part is data.train_part
    assert unread.describe() == data.describe()
    assert same(*(together(epoch_of(d, 1)) for d in (data, unread)))


def test_another_engine_serves_the_same_images():
    data = module(augment=Augmentation(), num_workers=0)
    other = data.with_engine("torchvision")
    assert (data.engine, other.engine) == ("batched", "torchvision")
    assert isinstance(other.training_batches(CPU), DataLoader)
    assert data.training_batches(CPU).images is other.train_part[0]
    pairs = zip(epoch_of(data, 1), epoch_of(other, 1), strict=True)
    assert all(same(a, b) for a, b in pairs)


def test_wrong_engine_is_named():
    with pytest.raises(UserError, match=r"engine: .* 'bached'; .*'batched'"):
        module("bached")


# --- ranks -------------------------------------------------------


@pytest.mark.parametrize("engine", ["batched", "torchvision"])
@pytest.mark.parametrize("world", [2, 3])
def test_ranks_share_what_one_device_with_their_batches_together_sees(engine, world):
    whole = epoch_of(module(engine, batch_size=8 * world), 1)
    parts = [
        epoch_of(module(engine, rank, world, batch_size=8), 1) for rank in range(world)
    ]
    assert {len(part) for part in parts} == {len(whole)} == {135 // (8 * world)}
    for step, batch in enumerate(whole):
        images, labels = together([part[step] for part in parts])
        # Other batches: the last digits may differ.
        torch.testing.assert_close(images, batch[0], atol=1e-4, rtol=0)
        assert torch.equal(labels, batch[1])


def test_no_image_is_on_two_ranks():
    ranks = [ShuffledBatches(50, 4, 0, rank, 3) for rank in range(3)]
    for epoch in range(3):
        for rank in ranks:
            rank.set_epoch(epoch)
        found = [i for rank in ranks for i in rank.indices().flatten().tolist()]
        assert len(found) == len(set(found)) == 48
        assert {len(rank) for rank in ranks} == {4}


@pytest.mark.parametrize("engine", ["batched", "torchvision"])
@pytest.mark.parametrize("world", [1, 2])
def test_a_repeated_image_is_augmented_anew_each_time(engine, world):
    augment = Augmentation(crop_padding=4, flip=0.5)
    options = {"augment": augment, "batch_size": 12 // world}
    parts = [
        epoch_of(module(engine, r, world, repeats=3, **options), 1)
        for r in range(world)
    ]
    assert {len(part) for part in parts} == {135 // 12}  # as many steps as without
    once = module(engine, repeats=1, **options)
    order = ShuffledBatches(135, 12, 0, epoch=1).indices().flatten()
    for step, batches in enumerate(zip(*parts, strict=True)):
        images, labels = together(batches)
        index = order[4 * step : 4 * step + 4]  # four images, three times each
        assert torch.equal(labels.view(4, 3)[:, 0], once.train_part[1][index])
        assert torch.equal(labels.view(4, 3), labels.view(4, 3)[:, :1].expand(4, 3))
        views = images.reshape(4, 3, -1)
        assert not torch.equal(views[:, 0], views[:, 1])
        assert not torch.equal(views[:, 1], views[:, 2])


def test_repeats_divide_the_batch():
    with pytest.raises(UserError, match=r"data.repeats: .*batch_size=16, got 3"):
        module(repeats=3)


@pytest.mark.parametrize("n", [7, 500, 501, 1000, 1001, 1503])
@pytest.mark.parametrize("world", [1, 2, 3])
def test_evaluation_counts_each_image_once_in_as_many_batches_on_every_rank(n, world):
    images = torch.arange(n).view(n, 1, 1, 1)
    loaders = [ImagesInOrder(images, torch.arange(n), r, world) for r in range(world)]
    found = [list(loader) for loader in loaders]
    batches = {len(batches) for batches in found} | {len(loader) for loader in loaders}
    assert len(batches) == 1
    sizes = [len(labels) for batches in found for _, labels in batches]
    assert min(sizes) >= 1
    assert max(sizes) <= 500
    for rank, part in enumerate(found):
        pixels, labels = together(part)
        assert labels.tolist() == list(range(rank, n, world))
        assert torch.equal(pixels.flatten(), labels)


def test_a_batch_that_the_devices_cannot_fill_is_named():
    assert len(epoch_of(module(world=2, batch_size=67))) == 1
    with pytest.raises(UserError, match=r"batch_size: .* at most 67 .* got 68"):
        module(world=2, batch_size=68, exact_batch_size=True)


def test_a_presets_batch_gives_way_to_a_small_set_and_says_so():
    data = module(world=2, batch_size=68)
    assert len(epoch_of(data)) == 67 // 16 == 4
    assert data.batch_size == data.describe()["batch_size"] == 16
    assert "68 do not fit, there are 135 images to train on; 16 are" in data.fitted
    assert module(batch_size=135).fitted is None


class Sorted(Source):
    """Its images sorted by class, as files in class folders are."""

    def load(self):
        images = super().load()
        order = images.test_labels.argsort(stable=True)
        test = (images.test_images[order], images.test_labels[order])
        return replace(images, test_images=test[0], test_labels=test[1])


@pytest.mark.parametrize("limit", [2, 0.5])
def test_a_part_of_the_test_has_its_share_of_each_class(limit):
    source = Sorted(num_test=2000)
    whole = module(source=source)
    images, labels = whole.test_part
    assert whole.test_dataloader().labels.tolist() == sorted(labels.tolist())
    data = module(source=source)
    data.trainer.limit_test_batches = limit
    loader = data.test_dataloader()
    first = torch.cat([y for _, y in list(loader)[:2]])
    assert max(first.bincount()) - min(first.bincount()) <= 2
    # What is shown beside the predictions are the same images, each once.
    assert same(data.test_part, (loader.images, loader.labels))
    assert same(data.test_part, (loader.images, data.test_dataloader().labels))
    sums = [x.flatten(1).double().sum(1).sort().values for x in (images, loader.images)]
    assert torch.equal(*sums)


# --- under Lightning's Trainer -----------------------------------


class Recorder(L.LightningModule):
    """Notes what its training steps are given."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.steps = []

    def training_step(self, batch, index):
        images, _ = batch
        channels_last = images.is_contiguous(memory_format=torch.channels_last)
        seen = (self.current_epoch, images.clone(), images.data_ptr(), channels_last)
        self.steps.append(seen)
        return self.weight * images.mean()

    def validation_step(self, batch, index):
        assert batch[0].dtype == torch.float32

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(tmp_path, epochs, ckpt=None, data=None, **options):
    data = data or ImageDataModule(
        Source(), SMALL, batch_size=32, num_workers=options.pop("num_workers", 0),
        engine=options.pop("engine", "batched"),
    )  # fmt: skip
    recorder = Recorder()
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        default_root_dir=tmp_path,
        **options,
    )
    trainer.fit(recorder, datamodule=data, ckpt_path=ckpt, weights_only=True)
    return recorder.steps, trainer


lightning = pytest.mark.filterwarnings(
    "ignore:.*isinstance.treespec, LeafSpec.*", "ignore:.*does not have many workers.*"
)


@lightning
@pytest.mark.parametrize("engine", ["batched", "torchvision"])
def test_a_resumed_run_sees_the_images_it_would_have_seen(tmp_path, engine):
    whole, _ = fit(tmp_path, 3, engine=engine)
    assert [epoch for epoch, *_ in whole] == [0] * 4 + [1] * 4 + [2] * 4
    assert len({step[1].sum().item() for step in whole}) == 12
    begun, trainer = fit(tmp_path, 2, engine=engine)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    rest, _ = fit(tmp_path, 3, ckpt=tmp_path / "last.ckpt", engine=engine)
    assert [epoch for epoch, *_ in rest] == [2] * 4
    for a, b in zip(whole, begun + rest, strict=True):
        assert torch.equal(a[1], b[1])


@pytest.mark.parametrize("engine", ["batched", "torchvision"])
def test_a_resumed_loader_begins_where_the_checkpoint_was_written(engine):
    # With worker processes, before Lightning calls `set_epoch`.
    data = module(engine)
    whole = [epoch_of(data, epoch) for epoch in (7, 8)]
    place = {"epoch": 7, "done": 3}
    state = {"fingerprint": data.images.fingerprint, "place": place}
    data.load_state_dict(state)
    loader = data.train_dataloader()
    assert len(loader) == len(whole[0])
    for epoch, batches in zip((7, 8), (whole[0][3:], whole[1]), strict=True):
        found = [data.on_after_batch_transfer(batch, 0) for batch in loader]
        for a, b in zip(found, batches, strict=True):
            assert torch.equal(a[0], b[0])
            assert torch.equal(a[1], b[1])
        loader.sampler.set_epoch(epoch + 1)


def test_other_pixels_are_refused_with_both_decoders():
    """The same files, decoded by two libraries, are other pixels under one hash."""
    data = module("batched")
    state = {"fingerprint": "sha256:0", "decoder": "Pillow 9.5.0, libjpeg 9.5"}
    with pytest.raises(UserError) as caught:
        data.load_state_dict(state)
    now = decoder()
    assert now.startswith("Pillow ")
    assert "libjpeg" in now
    message = str(caught.value)
    assert f"sha256:0, these have {data.images.fingerprint}" in message
    assert f"decoded then by Pillow 9.5.0, libjpeg 9.5, now by {now}" in message
    assert data.describe()["decoder"] == now
    with pytest.raises(UserError) as caught:
        data.load_state_dict({**state, "decoder": now})
    assert "decoded" not in str(caught.value)


@lightning
@pytest.mark.parametrize(("limit", "steps"), [(3, 3), (0.5, 2), (1.0, 4), (9, 4)])
def test_lightnings_limits_hold(tmp_path, limit, steps):
    seen, trainer = fit(tmp_path, 2, limit_train_batches=limit)
    assert trainer.num_training_batches == steps
    assert [epoch for epoch, *_ in seen] == [0] * steps + [1] * steps


@lightning
def test_a_step_gets_the_very_tensors_that_the_engine_made(tmp_path, monkeypatch):
    made = []
    finish = ImageDataModule.on_after_batch_transfer

    def note(self, batch, index):
        made.append(batch[0].data_ptr())
        return finish(self, batch, index)

    monkeypatch.setattr(ImageDataModule, "on_after_batch_transfer", note)
    seen, _ = fit(tmp_path, 1, limit_val_batches=0)
    assert [pointer for _, _, pointer, _ in seen] == made
    assert all(channels_last for *_, channels_last in seen)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_an_epoch_on_a_gpu_is_the_same_and_waits_for_nothing(monkeypatch):
    monkeypatch.setattr(loaders, "GPU_CHUNK", 40)  # two batches of 16 at once
    data = module()
    here = together(epoch_of(data, 1))
    data.trainer.strategy.root_device = torch.device("cuda", 0)
    loader = data.train_dataloader()
    assert loader.images.is_cuda
    assert data.train_dataloader().images is loader.images  # there once
    loader.sampler.set_epoch(1)
    batches = iter(loader)
    found = [next(batches)]  # the epoch's order and parameters move there
    torch.cuda.set_sync_debug_mode("error")
    try:
        found += [data.on_after_batch_transfer(batch, 0) for batch in batches]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    images, labels = together(found)
    torch.testing.assert_close(images.cpu(), here[0], atol=1e-2, rtol=0)
    assert torch.equal(labels.cpu(), here[1])


# --- torchvision, image by image ---------------------------------


def test_an_image_depends_on_seed_epoch_and_index_alone():
    images = random_images(1).expand(6, 3, 16, 16).clone()
    labels = torch.arange(6)
    data = AugmentedImages(images, labels, PAPER, seed=3)
    together, found = data[[(0, 4), (1, 2), (0, 1)]]
    assert found.tolist() == [4, 2, 1]
    torch.rand(1)  # whatever torch's own stream does between
    alone, _ = data[[(0, 1)]]
    assert torch.equal(alone[0], together[2])
    others = {
        "epoch": data[[(1, 1)]],
        "index": data[[(0, 2)]],
        "seed": AugmentedImages(images, labels, PAPER, seed=4)[[(0, 1)]],
    }
    for what, (other, _) in others.items():
        assert not torch.equal(other, alone), what


def test_augmenting_leaves_the_images_and_torchs_stream_alone():
    images, before = random_images(), random_images()
    torch.manual_seed(5)
    expected = torch.rand(4)
    torch.manual_seed(5)
    AugmentedImages(images, torch.zeros(40), PAPER, seed=0)[[(0, i) for i in range(8)]]
    assert torch.equal(torch.rand(4), expected)
    assert torch.equal(images, before)


def test_without_augmentation_the_images_are_the_images():
    images, labels = random_images(), torch.arange(40)
    found, theirs = AugmentedImages(images, labels, Augmentation(), 0)[[(0, 7), (9, 2)]]
    assert torch.equal(found, images[[7, 2]])
    assert theirs.tolist() == [7, 2]


def test_order_differs_between_epochs_and_repeats_within_one():
    def order(epoch, seed=0):
        batches = ShuffledBatches(50, 8, seed)
        batches.set_epoch(epoch)
        found = list(batches)
        assert len(found) == len(batches) == 6  # two images are left out
        assert {len(batch) for batch in found} == {8}
        assert {e for batch in found for e, _ in batch} == {epoch}
        return [i for batch in found for _, i in batch]

    assert order(1) == order(1)
    assert len({tuple(order(*which)) for which in [(0,), (1,), (2,), (1, 1)]}) == 4
    for epoch in range(3):
        assert len(set(order(epoch)) & set(range(50))) == 48  # none twice


def test_every_image_comes_up_though_a_rest_is_dropped():
    batches, seen = ShuffledBatches(50, 8, 0), Counter()
    for epoch in range(20):
        batches.set_epoch(epoch)
        seen.update(i for batch in batches for _, i in batch)
    assert set(seen) == set(range(50))


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")  # Python 3.12's
@pytest.mark.filterwarnings("ignore:.*create 2 worker processes")  # on one core
def test_batches_do_not_depend_on_the_workers():
    data = AugmentedImages(random_images(), torch.arange(40), PAPER, seed=1)
    batches = ShuffledBatches(40, 16, seed=1)
    batches.set_epoch(2)
    here, apart = (
        list(DataLoader(data, batch_size=None, sampler=batches, num_workers=n))
        for n in (0, 2)
    )
    assert len(here) == len(apart) == 2
    for ours, theirs in zip(here, apart, strict=True):
        assert torch.equal(ours[0], theirs[0])
        assert torch.equal(ours[1], theirs[1])


# --- split -------------------------------------------------------


def test_split_is_disjoint_complete_and_stratified():
    sizes = {0: 38, 1: 26, 5: 12, 9: 8}
    labels = torch.tensor([c for c, n in sizes.items() for _ in range(n)])
    labels = labels[torch.randperm(84)]
    train, val = stratified_split(labels, 0.1, seed=7)
    assert sorted(train.tolist() + val.tolist()) == list(range(84))
    for part in (train, val):
        assert part.tolist() == sorted(part.tolist())
    assert Counter(labels[val].tolist()) == {0: 4, 1: 3, 5: 1, 9: 1}  # 3.8 2.6 1.2 0.8


def test_a_small_class_gives_one_image():
    _, val = stratified_split(torch.tensor([0] * 50 + [1] * 2), 0.1, seed=0)
    assert (val >= 50).sum() == 1


def test_split_depends_on_its_seed_alone():
    labels = torch.arange(300) % 3

    def split(seed):
        torch.rand(1)  # whatever torch's own stream does between
        return stratified_split(labels, 0.2, seed)[1].tolist()

    first = split(0)
    assert split(1) != first
    assert split(0) == first
    assert first != list(range(60))


@pytest.mark.parametrize("fraction", [0, 1, -0.1, 1.5, float("nan")])
def test_share_out_of_range_is_named(fraction):
    with pytest.raises(UserError, match=f"val_fraction: .* got {fraction}"):
        stratified_split(torch.arange(10) % 2, fraction, 0)


def test_a_class_left_without_training_images_is_named():
    with pytest.raises(UserError, match="class 1 has 1 images"):
        stratified_split(torch.tensor([0, 0, 0, 1]), 0.1, 0)


def test_a_subset_without_an_image_of_a_class_is_told_by_its_own_setting():
    labels = torch.arange(100) % 10
    with pytest.raises(UserError, match=r"^data\.train_subset=1: class 0 has 9 images"):
        train_val_split(labels, "stratified", 0.1, 1, 0)


def test_folds_hold_each_image_out_once_and_each_class_evenly():
    labels = torch.tensor([0] * 11 + [1] * 7).roll(3)
    held_out = []
    for fold in range(3):
        train, val = fold_split(labels, 3, fold, seed=5)
        assert sorted(torch.cat([train, val]).tolist()) == list(range(18))
        counts = torch.bincount(labels[val], minlength=2).tolist()
        assert counts[0] in (3, 4)
        assert counts[1] in (2, 3)
        held_out += val.tolist()
    assert sorted(held_out) == list(range(18))
    other = fold_split(labels, 3, 0, seed=6)[1]
    assert other.tolist() != fold_split(labels, 3, 0, seed=5)[1].tolist()
    with pytest.raises(UserError, match=r"data\.folds: expected at most 7"):
        fold_split(labels, 8, 0, seed=0)
    for folds, fold in ((3, 3), (None, 1)):
        most = (
            f"{folds - 1} with data.folds={folds}" if folds else "0 without data.folds"
        )
        said = f"^data.fold: expected 0 to {most}, got {fold}$"
        with pytest.raises(UserError, match=said):
            ImageDataModule(Synthetic(20, 20), Augmentation(), folds=folds, fold=fold)
    with pytest.raises(UserError, match=r"data\.split: expected stratified with"):
        ImageDataModule(Synthetic(20, 20), Augmentation(), folds=3, split="tail")
