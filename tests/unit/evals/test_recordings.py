"""Names of recordings' files, and recordings that cannot be read."""

import numpy as np
import pytest

from ba_jax.data.record import Part
from ba_jax.evals.recordings import Recordings
from ba_jax.sampling.synthesize import Wave
from ba_jax.types import Failure
from tests.unit.evals import small_bench


@pytest.mark.parametrize("name", ["../../etc/x", "a/b", ".hidden", "", "名字 x", "a" * 300])
def test_an_id_that_is_no_file_name(tmp_path, name):
    recordings = Recordings(tmp_path)
    path = recordings.save("tts", name, Wave(np.zeros(10, np.float32), 24000))
    assert path.startswith("audio/tts/") and (tmp_path / path).is_file()
    assert path.count("/") == 2 and not path.split("/")[2].startswith(".")
    assert path != recordings.save("tts", f"{name}-", Wave(np.zeros(10, np.float32), 24000))
    assert len(recordings.load(path).wave_S) == 10 and recordings.load("") is None
    assert isinstance(recordings.load("audio/gone.wav"), Failure)


def test_a_reference_is_written_unless_it_is_damaged(tmp_path):
    bench = small_bench.empty_bench(tmp_path)
    part = bench.records.statements[0].parts[0]
    path = bench.recordings.save_reference(part, "x")
    assert len(bench.recordings.load(path).wave_S) == len(small_bench.recorded(part).wave_S)
    assert bench.recordings.save_reference(Part(audio=b"no audio", seconds=1.0), "y") == ""


def test_a_host_that_does_not_write_names_the_same_files(tmp_path):
    wave = Wave(np.zeros(10, np.float32), 24000)
    path = Recordings(tmp_path / "silent", writes=False).save("tts", "x", wave)
    assert path == Recordings(tmp_path).save("tts", "x", wave)
    assert not (tmp_path / "silent").exists()
