"""Places in an object store: what a URI may say, and a store that does not answer. S3 over its real wire protocol."""

import time

import pytest

from raymat.cli import main
from raymat.lock import held
from raymat.nodule import InputError
from raymat.places import ObjectFolder, Unreachable, open_filesystem
from raymat.store import Store


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("s3://AKIDEXAMPLE:verysecret@bucket/cases.csv", "leave them out and set AWS_ACCESS_KEY_ID"),
        ("s3://bucket/cases.csv?secret_key=verysecret", "a URI ends with its path"),
        ("gs://user:verysecret@bucket/cases.csv", "a gs:// URI carries credentials"),
    ],
)
def test_credentials_in_a_uri_are_refused_and_not_repeated(uri, words, capsys):
    with pytest.raises(InputError, match=words) as caught:
        open_filesystem(uri)
    assert "verysecret" not in str(caught.value)
    for arguments in (["--cases", uri], ["--lidc", uri], ["-o", uri]):
        assert main(["build", *arguments]) == 2
    assert main(["inspect", uri]) == 2
    said = capsys.readouterr()
    assert said.err.count(words) == 4
    assert "verysecret" not in said.err + said.out


@pytest.mark.parametrize("cell", ["../other/a.nii", "a/../../b.nii", "/bucket/a.nii", ""])
def test_a_path_cannot_climb_out_of_its_prefix(cell):
    with pytest.raises(InputError, match="leads out of"):
        ObjectFolder("s3://bucket/prefix").name_of(cell)


def test_an_object_whose_name_climbs_is_not_fetched(s3):
    place = ObjectFolder(s3.bucket("climbing"))
    with pytest.raises(InputError, match="leads out of its folder"), place.at_hand(["a/../../b.dcm"]):
        pass


@pytest.mark.slow
def test_a_store_that_does_not_answer_is_named_after_a_bounded_time(s3):
    store = Store.create(f"{s3.bucket('mute')}/dataset")
    s3.stop_answering()
    try:
        for ask in (
            lambda: store.read("dataset.json"),
            lambda: Store.open("s3://mute/dataset"),
        ):
            begun = time.monotonic()
            with pytest.raises(Unreachable, match=r"mute/dataset.*the store does not answer"):
                ask()
            assert time.monotonic() - begun < 60
    finally:
        s3.answer_again()
    assert store.read_format()["format"] == "raymat dataset"


def test_a_bucket_that_is_not_there_is_named(s3):
    with pytest.raises(InputError, match="no-such-bucket"):
        Store.create("s3://no-such-bucket/dataset")


@pytest.mark.slow
def test_a_second_build_is_refused_in_an_object_store_as_on_a_disk(s3):
    store = Store.create(f"{s3.bucket('locked')}/dataset")
    with (
        held(store, "first"),
        pytest.raises(InputError, match="another command is at work here"),
        held(store, "second"),
    ):
        pass
    with held(store, "third"):
        pass
    assert store.listing("") == ["dataset.json"]
