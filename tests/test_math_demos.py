"""math_demos: closed forms that SVD and ALS must meet, files that are wrong, and the three scripts as a user runs them."""

import io
import json
import struct
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

TASK = Path(__file__).resolve().parents[1] / "math_demos"


@pytest.fixture(scope="module")
def demos():
    """The folder's modules, under names of their own: other folders have a data.py, too."""
    names, found = ("plots", "data", "image_svd", "als", "als_movielens", "lora_lowrank"), {}
    before = {name: sys.modules.pop(name, None) for name in names}
    sys.path.insert(0, str(TASK))
    try:
        for name in names:
            found[name] = __import__(name)
    finally:
        sys.path.remove(str(TASK))
        for name in names:
            sys.modules.pop(name, None)
            if before[name]:
                sys.modules[name] = before[name]
    return SimpleNamespace(**found)


# -- images


def test_eckart_young_and_the_ends_of_rank(demos):
    pixels = np.random.default_rng(0).uniform(0, 255, (40, 25, 3))
    svds = demos.image_svd.decompose(pixels)
    for k in (0, 1, 7, 24):
        off = np.linalg.norm(pixels - demos.image_svd.reconstruct(svds, k))
        tail = np.sqrt(sum((s[k:] ** 2).sum() for _, s, _ in svds))
        assert off == pytest.approx(tail, rel=1e-9)
    assert not demos.image_svd.reconstruct(svds, 0).any()
    for full in (25, 26, 1000):
        assert np.abs(demos.image_svd.reconstruct(svds, full) - pixels).max() < 1e-9
    share = demos.image_svd.energy([s for _, s, _ in svds])
    assert share[0] == 0 and share[-1] == pytest.approx(1) and (np.diff(share) > 0).all()
    assert (demos.image_svd.energy([np.zeros(4)]) == 1).all()  # black: no 0 / 0


@pytest.mark.parametrize(
    ("channels", "peak", "skimage"), [(1, 255, 0.8153582247955778), (3, 255, 0.8102648106814843), (1, 65535, 0.8153582247955782)]
)  # fmt: skip
def test_ssim_is_scikit_image_s(demos, channels, peak, skimage):
    """The values are scikit-image 0.26.0's (gaussian_weights, sigma 1.5, use_sample_covariance False)."""
    y, x = np.mgrid[0:40, 0:56]
    base = np.round(127 + 60 * np.sin(x / 5) + 50 * np.cos(y / 7))
    one = np.stack([np.roll(base, 3 * c, 0) for c in range(channels)], 2)
    two = np.clip(np.round(one * 0.9 + ((x * 7 + y * 13) % 31)[:, :, None]), 0, 255)
    scale = peak / 255
    assert demos.image_svd.ssim(one * scale, two * scale, peak) == pytest.approx(skimage, abs=1e-12)
    assert demos.image_svd.ssim(one, one, 255) == pytest.approx(1)
    assert np.isnan(demos.image_svd.ssim(one[:10], two[:10], 255))


def test_psnr_int8_patches_and_jpeg(demos):
    svd = demos.image_svd
    assert svd.psnr(np.zeros((4, 4, 1)), np.full((4, 4, 1), 5.0), 255) == pytest.approx(20 * np.log10(255 / 5))
    y, x = np.mgrid[0:45, 0:61]
    pixels = np.round(np.stack([127 + 90 * np.sin(x / 9 + y / 5), 100 + x + y], 2)[:, :, [0, 1, 1]]).clip(0, 255)
    image, size = svd.int8_factors(svd.decompose(pixels), 12)
    assert size == 3 * (12 * (45 + 61) + 2 * 12 * 4) and svd.psnr(pixels, image, 255) > 30
    image, size = svd.patch_svd(pixels, 64)
    assert image.shape == pixels.shape and size == 3 * 64 * (6 * 8 + 64 + 8) - 3 * 2 * (64 - 48) * 4 - 3 * 16 * (
        48 + 64
    )
    assert svd.psnr(pixels, image, 255) > 35
    coded, size = svd.jpeg(pixels, 3000)
    assert size <= 3000 and coded.shape == pixels.shape and svd.jpeg(pixels, 10) is None
    k = svd.smallest_k(svd.decompose(pixels), pixels, 255, 30)
    shown = [svd.quality_psnr(svd.decompose(pixels), pixels, 255, n) for n in (k - 1, k)]
    assert shown[0] < 30 <= shown[1]


def test_kinds_of_images(demos, tmp_path):
    from PIL import Image

    read = demos.image_svd.read_image
    ramp = np.arange(48, dtype=np.uint8).reshape(6, 8)
    for name, image, shape, first in (
        ("grey.png", Image.fromarray(ramp), (6, 8, 1), 0),
        ("clear.png", Image.new("RGBA", (8, 6), (0, 0, 0, 0)), (6, 8, 3), 255),  # transparent black is white paper
        ("dot.png", Image.new("RGB", (1, 1), (9, 9, 9)), (1, 1, 3), 9),
        ("cmyk.jpg", Image.new("CMYK", (8, 6)), (6, 8, 3), 255),
    ):
        image.save(tmp_path / name)
        pixels, peak = read(tmp_path / name)
        assert pixels.shape == shape and peak == 255 and pixels[0, 0, 0] == first
    deep = Image.fromarray((ramp.astype(np.uint16) + 1000) * 60)
    deep.save(tmp_path / "deep.png")
    pixels, peak = read(tmp_path / "deep.png")
    assert peak == 65535 and pixels.max() == 1047 * 60

    (tmp_path / "text.png").write_text("no image")
    Image.effect_noise((64, 64), 50).save(tmp_path / "half.png")
    (tmp_path / "half.png").write_bytes((tmp_path / "half.png").read_bytes()[:2000])
    Image.new("L", (7000, 7000)).save(tmp_path / "huge.png")
    # Decoders that nobody needs here stay shut, whatever a file is called: EPS starts Ghostscript.
    for kind in ("eps", "tiff", "ico", "pcx", "gif"):
        Image.new("L", (16, 16)).save(tmp_path / f"{kind}.png", format=kind)
    exif = struct.pack("<HHIHH", 0x0112, 3, 1, 6, 0) + struct.pack("<HHII", 0x011A, 10, 1, 38)  # on its side; -50/1
    exif = b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", 2) + exif + struct.pack("<Iii", 0, -50, 1)
    Image.new("RGB", (8, 6)).save(tmp_path / "exif.jpg", exif=exif)  # Pillow reads it, and cannot write it back
    for name, said in (
        ("eps.png", "neither JPEG nor PNG nor WEBP"),
        ("tiff.png", "neither JPEG nor PNG nor WEBP"),
        ("ico.png", "neither JPEG nor PNG nor WEBP"),
        ("pcx.png", "neither JPEG nor PNG nor WEBP"),
        ("gif.png", "neither JPEG nor PNG nor WEBP"),
        ("exif.jpg", "not a complete"),
        ("text.png", "neither JPEG nor PNG nor WEBP"),
        ("half.png", "not a complete"),
        ("huge.png", "at most"),
        ("no.png", "no such"),
    ):
        with pytest.raises(SystemExit, match=said):
            read(tmp_path / name)


# -- ALS


def table(demos, seed=0, n_users=30, n_items=20, share=0.5):
    rng = np.random.default_rng(seed)
    users, items = np.nonzero(rng.random((n_users, n_items)) < share)
    return users.astype(np.int32), items.astype(np.int32), rng.standard_normal(len(users))


def sides(demos, users, items, values, n_users, n_items):
    batches = demos.als.batches
    return batches(users, items, values, n_users, n_items), batches(items, users, values, n_items, n_users)


def test_batches_hold_each_rating_once(demos):
    rng = np.random.default_rng(1)
    key = np.unique((rng.zipf(1.5, 5000) % 300) * 200 + rng.integers(0, 200, 5000))
    rows, cols = (key // 200).astype(np.int32), (key % 200).astype(np.int32)
    values = rng.standard_normal(len(key)).astype(np.float32)
    order = rng.permutation(len(key))
    found = []
    for at, others, r in demos.als.batches(rows[order], cols[order], values[order], 300, 200):
        real = others < 200
        assert others.shape[1] <= np.ceil(demos.als.PADDING * real.sum(axis=1).min()) + 1 and not r[~real].any()
        found += zip(np.broadcast_to(at[:, None], others.shape)[real], others[real], r[real], strict=True)
    assert sorted(found) == sorted(zip(rows, cols, values, strict=True))


@pytest.mark.parametrize(("weighted", "plain"), [(False, False), (True, False), (False, True), (True, True)])
def test_no_half_step_raises_the_objective(demos, weighted, plain):
    users, items, values = table(demos)
    by_user, by_item = sides(demos, users, items, values, 30, 20)
    P, Q = demos.als.start(30, 20, 5, np.float64)
    n_u, n_i = (np.bincount(index, minlength=n) if weighted else np.ones(n) for index, n in ((users, 30), (items, 20)))

    def objective():
        penalty = (n_u * (P[:-1] ** 2).sum(1)).sum() + (n_i * (Q[:-1] ** 2).sum(1)).sum()
        return ((values - (P[users] * Q[items]).sum(1)) ** 2).sum() + 0.3 * penalty

    last = np.inf
    for _, after_p, after_q in demos.als.als(by_user, by_item, P, Q, 0.3, 15, weighted, plain=plain):
        assert after_q == pytest.approx(objective(), rel=1e-10)  # the free value is the real one
        assert after_p <= last * (1 + 1e-12) and after_q <= after_p * (1 + 1e-12)
        last = after_q


def test_threads_and_float32_change_nothing_that_matters(demos):
    users, items, values = table(demos)
    results = []
    for dtype, threads in ((np.float64, 1), (np.float64, 2), (np.float32, 2)):
        P, Q = demos.als.start(30, 20, 4, dtype)
        states = demos.als.als(
            *sides(demos, users, items, values.astype(dtype), 30, 20), P, Q, 0.5, 10, threads=threads
        )
        results.append([each for _, *pair in states for each in pair])
        assert P.dtype == dtype and not P[-1].any() and not Q[-1].any()
    assert results[0] == pytest.approx(results[1], rel=1e-12) and results[0] == pytest.approx(results[2], rel=1e-5)
    assert (np.diff(results[2]) <= 1e-6 * np.abs(results[2][:-1])).all()


@pytest.mark.parametrize("half_step", ["half_step", "half_step_fast"])
@pytest.mark.parametrize("rank", [3, 12])  # more ratings than factors, and fewer: the dual form
def test_each_row_is_its_least_squares(demos, rank, half_step):
    users, items, values = table(demos, share=0.4)
    by_user, _ = sides(demos, users, items, values, 30, 20)
    P, Q = demos.als.start(30, 20, rank, np.float64, seed=3)
    gained = getattr(demos.als, half_step)(by_user, Q, P, np.full(30, 0.7))
    assert gained == pytest.approx(
        sum(P[user] @ Q[item] * r for user, item, r in zip(users, items, values, strict=True))
    )
    for user in range(30):
        x, r = Q[items[users == user]], values[users == user]
        system = np.vstack([x, np.sqrt(0.7) * np.eye(rank)])
        best = np.linalg.lstsq(system, np.concatenate([r, np.zeros(rank)]))[0]
        assert np.abs(P[user] - best).max() < 1e-12


def test_full_tables_are_svd(demos):
    """All ratings known: with a small ridge ALS is the truncated SVD, with a ridge lam its soft-thresholded one."""
    A = np.random.default_rng(4).standard_normal((25, 18)) @ np.diag(np.linspace(3, 0.2, 18))
    users, items = (index.ravel().astype(np.int32) for index in np.indices(A.shape))
    u, s, vh = np.linalg.svd(A, full_matrices=False)
    for lam, rank, wanted in ((1e-9, 4, np.where(np.arange(18) < 4, s, 0)), (4.0, 18, np.maximum(s - 4.0, 0))):
        P, Q = demos.als.start(25, 18, rank, np.float64)
        Q[:-1] = vh[:rank].T + 0.01 * np.random.default_rng(5).standard_normal((18, rank))
        for _ in demos.als.als(*sides(demos, users, items, A.ravel(), 25, 18), P, Q, lam, 400):
            pass
        product = P[:-1] @ Q[:-1].T
        assert np.linalg.norm(product - (u * wanted) @ vh) < 1e-6 * np.linalg.norm(A)
    nuclear = np.linalg.svd(product, compute_uv=False).sum()  # the identity behind it: balanced factors carry it
    assert (P**2).sum() / 2 + (Q**2).sum() / 2 == pytest.approx(nuclear, rel=1e-6)
    U, values, V = demos.als.singular_values(P[:-1], Q[:-1])
    assert values == pytest.approx(np.linalg.svd(product, compute_uv=False)[:18], abs=1e-9)
    assert np.abs((U * values) @ V.T - product).max() < 1e-9


def test_order_and_numbering_change_nothing(demos):
    users, items, values = table(demos)
    rng = np.random.default_rng(6)
    shuffled, new_user, new_item = rng.permutation(len(values)), rng.permutation(30), rng.permutation(20)
    products = []
    for given in ((users, items, values), (new_user[users][shuffled], new_item[items][shuffled], values[shuffled])):
        P, Q = demos.als.start(30, 20, 4, np.float64)
        if products:
            Q[:-1][new_item] = Q[:-1].copy()
        for _ in demos.als.als(*sides(demos, *given, 30, 20), P, Q, 0.5, 10):
            pass
        products.append(P[:-1] @ Q[:-1].T)
    assert np.abs(products[1][new_user][:, new_item] - products[0]).max() < 1e-10


def ratings_of(demos, users, items, values):
    return demos.data.Ratings(
        np.asarray(users, np.int32), np.asarray(items, np.int32), np.asarray(values, np.float32), np.arange(6), np.arange(5),
        [f"film {n}" for n in range(5)], 1.0, 5.0, "test",
    )  # fmt: skip


def settings(**more):
    return SimpleNamespace(**dict(bias_lam=2.0, rank=3, iterations=6, weighted=False, threads=1, seed=0) | more)


def test_cold_start_and_constant_ratings(demos, capsys):
    als = demos.als
    ratings = ratings_of(
        demos, [0, 0, 1, 1, 2, 3], [0, 1, 0, 2, 2, 1], [5, 3, 4, 2, 1, 4]
    )  # user 4, 5, film 3, 4: cold
    model = als.fit(ratings, ratings.take(slice(None)), settings(), lam=0.1)
    u, i = np.array([4, 0, 4, -1, -1, 0]), np.array([1, 3, 3, 2, -1, -1])
    mu, b_u, b_i = model.mu, model.b_u, model.b_i
    assert model.predict(u, i) == pytest.approx([mu + b_i[1], mu + b_u[0], mu, mu + b_i[2], mu, mu + b_u[0]])
    assert not model.P[4:].any() and not model.Q[3:].any()
    for user in (0, 77):
        demos.als_movielens.recommend(ratings, model, ratings.take(slice(None)), user)
    assert "user 77 has no ratings here" in (said := capsys.readouterr().out) and "nan" not in said
    flat = ratings_of(demos, [0, 0, 1, 2], [0, 1, 2, 2], [3, 3, 3, 3])
    model = als.fit(flat, flat.take(slice(None)), settings(), lam=0.1)
    assert not model.P.any() and not model.b_u.any() and (model.predict(u, i) == 3).all()
    with pytest.raises(SystemExit, match="must be above 0"):
        als.fit(flat, flat.take(slice(None)), settings(), lam=0.0)


def test_a_planted_table_is_recovered_to_the_noise(demos):
    als = demos.als
    ratings = demos.data.synthetic(120_000, 500, 400, rank=3, noise=0.5, seed=2)
    test = np.arange(len(ratings)) % 10 == 0
    model = als.fit(ratings, ratings.take(~test), settings(bias_lam=5.0, iterations=12), lam=2.0)
    u, i, r = ratings.take(test)
    assert 0.5 < als.errors(model.predict(u, i), r)[0] < 0.5 * 1.06
    s = als.singular_values(model.P[:-1], model.Q[:-1])[1]
    assert len(s) == 3 and s[2] > 30


@pytest.mark.parametrize(
    ("biases", "cmfrec", "within"), [(False, 0.8808029188308477, 1e-3), (True, 0.8719299446853802, 5e-3)]
)
def test_level_with_cmfrec(demos, biases, cmfrec, within):
    """The RMSE of cmfrec 3.5.1.post14 (k 8, lambda 10, 30 iterations, Cholesky, double) on these ratings; its biases are
    fitted together with the factors, ours before them."""
    als = demos.als
    ratings = demos.data.synthetic(60_000, 600, 400, rank=4, seed=3)
    assert len(ratings) == 51338 and ratings.values.sum(dtype=float) == pytest.approx(178831.327, abs=0.01)
    test = np.arange(len(ratings)) % 10 == 0
    given = settings(bias_lam=5.0 if biases else 1e12, rank=8, iterations=30)
    model = als.fit(ratings, ratings.take(~test), given, lam=10.0)
    u, i, r = ratings.take(test)
    assert als.errors(model.predict(u, i), r)[0] == pytest.approx(cmfrec, abs=within)


# -- MovieLens's files


ROWS = [(1, 10, 4, 881250949), (1, 20, 3, 881250950), (2, 10, 5, 881250951), (7, 30, 1, 881250952)]


def written(folder, name, separator, rows=ROWS, header=""):
    folder.mkdir(exist_ok=True)
    text = header + "".join(separator.join(map(str, row)) + "\n" for row in rows)
    (folder / name).write_text(text)
    return folder / name


def test_every_form_reads_alike(demos, tmp_path):
    head = "userId,movieId,rating,timestamp\n"
    a = written(tmp_path / "a", "u.data", "\t", [(0, 50, 5, 1), *ROWS])
    (tmp_path / "a" / "u.item").write_text("10|Amélie (2001)||\n20|B|\n", encoding="latin-1")
    b = written(tmp_path / "b", "ratings.dat", "::")
    (tmp_path / "b" / "movies.dat").write_text("10::Amélie (2001)::Comedy\n", encoding="latin-1")
    c = written(tmp_path / "c", "ratings.csv", ",", header=head)
    (tmp_path / "c" / "movies.csv").write_text(
        'movieId,title,genres\n10,"Amélie, or so (2001)",Comedy\n', encoding="utf-8"
    )
    with zipfile.ZipFile(tmp_path / "ml.zip", "w") as archive:
        for file in (tmp_path / "c").iterdir():
            archive.write(file, f"ml-latest-small/{file.name}")
    for source in (a, a.parent, b, b.parent, c, c.parent, tmp_path / "ml.zip"):
        ratings = demos.data.read_ratings(source)
        assert ratings.user_ids[ratings.users].tolist() == [1, 1, 2, 7]
        assert ratings.item_ids[ratings.items].tolist() == [10, 20, 10, 30] and ratings.values.tolist() == [4, 3, 5, 1]
        assert ratings.titles[0].startswith("Amélie") and ratings.titles[2] == "film 30"
        notes = " ".join(ratings.notes)
        assert ("1 rows of user 0 left out" in notes and "not ml-100k as published" in notes) == (
            source in (a, a.parent)
        )
    with pytest.raises(SystemExit, match="several sets"):
        demos.data.read_ratings(tmp_path)


HEAD = "userId,movieId,rating,timestamp\n"


def test_a_zip_with_several_sets_or_with_damage_is_refused(demos, tmp_path):
    text = "userId,movieId,rating,timestamp\n" + "".join(f"{n % 9},{n},3.5,0\n" for n in range(1, 400))
    with zipfile.ZipFile(tmp_path / "both.zip", "w") as archive:
        archive.writestr("small/ratings.csv", text)
        archive.writestr("big/ratings.dat", "1::1::3::0\n")
    with pytest.raises(SystemExit, match="several sets: big/ratings.dat, small/ratings.csv"):
        demos.data.read_ratings(tmp_path / "both.zip")
    with zipfile.ZipFile(tmp_path / "one.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("__MACOSX/ml/ratings.csv", "junk")
        archive.writestr("ml/ratings.csv", text)
    assert len(demos.data.read_ratings(tmp_path / "one.zip").values) == 399
    content = bytearray((tmp_path / "one.zip").read_bytes())
    at = zipfile.ZipFile(tmp_path / "one.zip").getinfo("ml/ratings.csv").header_offset + 60
    content[at : at + 40] = bytes(40)
    (tmp_path / "bad.zip").write_bytes(content)
    with pytest.raises(SystemExit, match="not a complete zip file"):
        demos.data.read_ratings(tmp_path / "bad.zip")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("u.data", "", "no rating in it"),
        ("u.data", "1\t2\t3\t4\n1\t2\t3\n", "line 2: expected user<tab>film<tab>rating<tab>time, found '1\\t2\\t3'"),
        ("u.data", "1,2,3,4\n", "line 1: expected user<tab>film"),
        ("ratings.dat", "1\t2\t3\t4\n", "line 1: expected user::film::rating::time"),
        ("ratings.csv", HEAD + "1;2;3;4\n", "line 2: expected user,film,rating,time"),
        ("ratings.csv", "1,2,3,4\n", "line 1: expected the header userId,movieId,rating,timestamp, found '1,2,3,4'"),
        ("ratings.csv", HEAD + "1,2,nan,4\n", "line 2: rating nan is not between 0.5 and 5"),
        ("ratings.csv", HEAD + "1,2,4,4\n1,3,5.5,4\n", "line 3: rating 5.5 is not between 0.5 and 5"),
        ("u.data", "1\t2\t0\t4\n", "line 1: rating 0 is not between 1 and 5"),
        ("u.data", "1\t2\t3\t4\nx\t2\t3\t4\n", "line 2, column 1: 'x' is no number"),
        ("u.data", "1\t2\t3\t4\n1\t2\t4\t5\n", "user 1 rated film 2 more than once"),
        ("notes.txt", "1\t2\t3\t4\n", "expected u.data, ratings.dat, ratings.csv"),
        ("ml.zip", "no zip", "not a complete zip file"),
    ],
)
def test_wrong_files_are_named_with_their_line(demos, tmp_path, name, content, said):
    (tmp_path / name).write_text(content)
    with pytest.raises(SystemExit) as stop:
        demos.data.read_ratings(tmp_path / name)
    assert said in str(stop.value) and str(tmp_path) in str(stop.value)


def test_official_folds(demos, tmp_path):
    source = written(tmp_path, "u.data", "\t").parent
    for n in range(1, 6):
        written(tmp_path, f"u{n}.test", "\t", [ROWS[n % 4]])
    ratings = demos.data.read_ratings(source)
    assert [mask.tolist().index(True) for mask in demos.data.read_folds(source, ratings)] == [1, 2, 3, 0, 1]
    written(tmp_path, "u3.test", "\t", [(9, 9, 3, 1)])
    with pytest.raises(SystemExit, match="u3.test has ratings that u.data lacks"):
        demos.data.read_folds(source, ratings)
    (tmp_path / "u3.test").unlink()
    with pytest.raises(SystemExit, match="--folds needs u3.test"):
        demos.data.read_folds(source, ratings)


# -- low rank of an update


def test_cuts_of_an_update(demos):
    import torch

    torch.manual_seed(0)
    delta = torch.randn(30, 20)
    svd = demos.lora_lowrank.factors(delta)
    for rank in (0, 3, 20, 99):
        off = torch.linalg.norm(delta - demos.lora_lowrank.cut(svd, rank))
        assert float(off) == pytest.approx(float(svd[1][rank:].norm()), rel=1e-4, abs=1e-4)
    B, A = torch.randn(30, 4), torch.randn(4, 20)
    s = demos.lora_lowrank.product_singular_values(B, A)
    dense = torch.linalg.svdvals(B.double() @ A.double())
    assert len(s) == 4 and torch.allclose(s, dense[:4]) and dense[4] < 1e-12  # of rank 4, exactly
    assert demos.lora_lowrank.effective_rank(torch.ones(7)) == pytest.approx(7)
    assert demos.lora_lowrank.effective_rank(torch.tensor([3.0, 0, 0])) == pytest.approx(1)
    share = demos.lora_lowrank.energy([torch.tensor([2.0, 1.0]), torch.tensor([1.0])])
    assert share.tolist() == pytest.approx([5 / 6, 1])


def test_reports_and_their_batches(demos, tokenizer):
    texts = demos.lora_lowrank.reports(0, 50)
    assert len(set(texts)) == 50 and texts == demos.lora_lowrank.reports(0, 50)
    ((ids, mask, labels),) = demos.lora_lowrank.batches_of(texts[:3], tokenizer, 3)
    for row, text in enumerate(texts[:3]):
        n = int(mask[row].sum())
        assert tokenizer.decode(ids[row, :n]) == text + tokenizer.eos_token
        assert (labels[row, :n] == ids[row, :n]).all() and (labels[row, n:] == -100).all()


@pytest.fixture(scope="module")
def tokenizer(demo_model):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(demo_model)


# -- the scripts, in a copy of the folder alone


def figures(tmp_path):
    return sorted(file.name for file in (tmp_path / "outputs" / "math_demos").iterdir())


@pytest.mark.slow
def test_the_folder_works_alone(copied, script, tmp_path, tiny_model):
    from PIL import Image

    task = copied("math_demos")
    said = script(task / "image_svd.py", "--k", 3, 20, "--target_psnr", 20, "--save", tmp_path / "s.png").stdout
    assert "smallest k with 20 dB: 12" in said and "k = 276 by count of numbers, k = 69 as float32" in said
    assert Image.open(tmp_path / "s.png").size == (512, 600) and figures(tmp_path) == ["image_svd.png", "image_svd.svg"]
    kept = script(task / "image_svd.py", "--save", tmp_path / "s.png", check=False)
    assert kept.returncode and "what is there is kept" in kept.stderr

    brief = ("--iterations", 3, "--ranks", 2, "--lam", 10, "--save", tmp_path / "f.npz")
    said = script(task / "als_movielens.py", *brief, "--user", 5).stdout
    assert "noise floor" in said and "user 5: " in said and "als.svg" in figures(tmp_path)
    with np.load(tmp_path / "f.npz") as saved:
        P, whole = saved["P"], dict(saved)
    whole["iteration"] = np.array(2)  # as if stopped after the second: P is solved from Q, so Q is what counts
    again = script(task / "als_movielens.py", *brief).stdout
    assert "going on after iteration 3" in again
    np.savez(tmp_path / "f.npz", **whole)
    assert "going on after iteration 2" in script(task / "als_movielens.py", *brief).stdout
    with np.load(tmp_path / "f.npz") as saved:
        assert saved["iteration"] == 3 and np.abs(saved["P"] - P).max() < 0.5
    other = script(task / "als_movielens.py", *brief, "--seed", 1, check=False)
    assert other.returncode and "other data or settings; it is kept" in other.stderr

    said = script(
        task / "lora_lowrank.py",
        "--model",
        tiny_model,
        "--steps",
        2,
        "--batch_size",
        2,
        "--ranks",
        1,
        64,
        "--lora_ranks",
        2,
    ).stdout
    result = json.loads((tmp_path / "outputs" / "math_demos" / "lora.json").read_text())
    assert "effective rank of dW" in said and result["full"] < result["base"]
    assert result["cut"][1]["energy"] == pytest.approx(1) and result["cut"][1]["loss"] == pytest.approx(
        result["full"], abs=1e-3
    )
    assert result["cut"][0]["parameters"] == result["lora"][0]["parameters"] / 2
    assert {"lora.png", "lora.svg"} <= set(figures(tmp_path))


@pytest.mark.parametrize("kind", ["dot", "grey", "deep"])
@pytest.mark.slow
def test_odd_images_through_the_script(script, tmp_path, kind):
    from PIL import Image

    ramp = (np.add.outer(np.arange(16), np.arange(24)) * 5).astype(np.uint8)
    image = {
        "dot": Image.new("RGB", (1, 1)),
        "grey": Image.fromarray(ramp),
        "deep": Image.fromarray(ramp.astype(np.uint16) * 200),
    }
    image[kind].save(tmp_path / "image.png")
    said = script(
        TASK / "image_svd.py", "--image", tmp_path / "image.png", "--k", 0, 1, 500, "--save", tmp_path / "o.png"
    ).stdout
    rank = 1 if kind == "dot" else 16
    assert f"has rank {rank} at most" in said and np.array_equal(Image.open(tmp_path / "o.png"), image[kind])


@pytest.mark.parametrize(
    ("file", "arguments", "said"),
    [
        ("image_svd.py", ["--image", "nowhere.png"], "nowhere.png: no such file"),
        ("image_svd.py", ["--k", "-1"], "expected 0 or more, got -1"),
        ("image_svd.py", ["--k", "two"], "invalid int value: 'two'"),
        ("als_movielens.py", ["--data", "nowhere"], "nowhere: no such file or folder"),
        ("als_movielens.py", ["--folds"], "the synthetic set has none"),
        ("als_movielens.py", ["--rank", "0"], "expected 1 or more, got 0"),
        ("als_movielens.py", ["--ranks", "2", "x"], "invalid int value: 'x'"),
        ("lora_lowrank.py", ["--steps", "0"], "expected 1 or more, got 0"),
        ("lora_lowrank.py", ["--model", "nowhere"], "model 'nowhere' was not found"),
    ],
)
def test_bad_flags_are_said_in_a_line(script, file, arguments, said):
    done = script(TASK / file, *arguments, check=False)
    assert done.returncode and said in done.stderr and "Traceback" not in done.stderr


def test_an_interrupted_write_leaves_the_old_file(demos, tmp_path, monkeypatch):
    """A crash in the middle of saving must not take the factors that were there."""
    ratings = ratings_of(demos, [0, 1], [0, 1], [3, 4])
    model = demos.als.fit(ratings, ratings.take(slice(None)), settings(), lam=0.1)
    file = tmp_path / "f.npz"
    demos.als_movielens.write_factors(file, ratings, model, 1, "key")
    before = file.read_bytes()
    monkeypatch.setattr(np, "savez", lambda handle, **_: (handle.write(b"half"), 1 / 0))
    with pytest.raises(ZeroDivisionError):
        demos.als_movielens.write_factors(file, ratings, model, 2, "key")
    assert file.read_bytes() == before and demos.als_movielens.read_factors(file, "key")[0] == 1
    np.load(io.BytesIO(before))
    file.write_bytes(before[: len(before) // 2])
    with pytest.raises(SystemExit, match="no file of factors; it is kept"):
        demos.als_movielens.read_factors(file, "key")
