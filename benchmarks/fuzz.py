"""Feed what reads other people's files with inputs that a fuzzer makes up, and keep those that it can't take.

    pip install atheris
    python benchmarks/fuzz.py csv --minutes 10       fer2013.csv and FER+ votes
    python benchmarks/fuzz.py facts --minutes 10     what a model file says of itself, and of its network
    python benchmarks/fuzz.py h5 --minutes 10        whole model files, as far as Keras isn't asked
    python benchmarks/fuzz.py picture --minutes 10   images; of those that another process decodes the headers
    python benchmarks/fuzz.py video --minutes 10     videos, read frame by frame and written anew with their sound

Each input must be read, or refused with a UserError, within three seconds and two gigabytes. Atheris (libFuzzer) is
guided by the lines of this project that an input reaches. What isn't taken lies in the working directory as crash-,
timeout- or oom-something. Prints how many inputs were tried, and in how many HDF5's library crashed or never ended:
the program checks model files in a process of their own. Exit status 1 when the fault is not HDF5's. Linux and macOS.
"""

import argparse
import contextlib
import io
import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

os.environ["OPENCV_IO_MAX_IMAGE_PIXELS"] = str(2**20)  # larger ones take longer than an input may

import atheris

with atheris.instrument_imports(include=["expressions"]):
    from expressions import EMOTIONS, UserError, image_decoder, image_formats, model_validation
    from expressions.inference import recorder, sources
    from expressions.inference import video as videos
    from expressions.training import dataset, readers

import av
import cv2
import h5py
import numpy as np

FOLDER = Path(tempfile.mkdtemp(dir="/dev/shm" if os.path.isdir("/dev/shm") else None))
PIXELS = " ".join(["7"] * 2304)
METADATA = {"labels": list(EMOTIONS), "scaling": "unit", "temperature": 1.5, "fold": "1/2"}
VIDEOS = [  # format, codec of the frames, of the sound
    *(("mp4", "mpeg4", "aac"), ("mp4", "libx264", None), ("mov", "mjpeg", "pcm_s16le"), ("webm", "libvpx", "libopus")),
    *(("avi", "mjpeg", "pcm_s16le"), ("mpegts", "mpeg2video", "mp2"), ("gif", "gif", None), ("flv", "flv1", None)),
    *(("ogg", "libvpx", "libopus"), ("asf", "wmv2", None), ("matroska", "ffv1", "flac"), ("ivf", "libvpx", None)),
    *(("h264", "libx264", None), ("hevc", "libx265", None), ("m4v", "mpeg4", None), ("mjpeg", "mjpeg", None)),
]


def csv(data):
    for name in ("fer2013.csv", "fer2013new.csv"):
        (FOLDER / name).write_bytes(data)
    for part in (FOLDER, FOLDER / "fer2013.csv"):
        with contextlib.suppress(UserError):
            dataset.load(part)


def facts(data):
    said, _, config = data.decode(errors="surrogateescape").partition("\n")
    with contextlib.suppress(UserError):
        model_validation.parse_metadata(said, config, {})


def h5(data):
    path = FOLDER / "model.h5"
    path.write_bytes(data)
    with contextlib.suppress(UserError):
        model_validation.validate_model_file(path)


def picture(data):
    with contextlib.suppress(UserError):
        info = image_formats.inspect_image(data)
        assert len(info.data) <= len(data)
        if info.format not in image_formats.LIMITED:
            image = image_decoder.decode(info)
            assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3


def video(data):
    path = FOLDER / "video"
    path.write_bytes(data)
    videos.MAX_IMAGE_PIXELS, videos.MAX_MEMORY_BYTES = 2**16, 2**30  # so that what is allowed is quick and small
    with contextlib.suppress(UserError), sources.Source(path) as source:
        if not source.is_image:
            with recorder.Recorder(FOLDER / "copy.mp4", source, overwrite=True) as copy:
                for frame in itertools.islice(source, 20):
                    copy.write(frame.image, frame.seconds)


def small_video(kind, codec, sound_codec):
    """Four frames of 32 pixels, and sound."""
    content = io.BytesIO()
    with av.open(content, "w", format=kind) as container:
        pixels = {"gif": "rgb8", "mjpeg": "yuvj420p"}.get(codec, "yuv420p")
        streams = [container.add_stream(codec, 10, width=32, height=32, pix_fmt=pixels)]
        frames = [av.VideoFrame.from_ndarray(np.full((32, 32, 3), 60 * n, np.uint8), "rgb24") for n in range(4)]
        if sound_codec:
            streams.append(container.add_stream(sound_codec, 48000, layout="mono"))
        container.start_encoding()
        for frame in frames:
            container.mux(streams[0].encode(frame))
        for stream in streams[1:]:
            size = stream.codec_context.frame_size or 960
            for number in range(4):
                frame = av.AudioFrame.from_ndarray(np.zeros((1, size), np.int16), "s16", "mono")
                frame.sample_rate, frame.pts = 48000, number * size
                container.mux(stream.encode(frame))
        for stream in streams:
            container.mux(stream.encode(None))
    return content.getvalue()


KINDS = {"csv": csv, "facts": facts, "h5": h5, "picture": picture, "video": video}


def seeds(kind):
    """Inputs to begin with, bytes: good ones."""
    if kind == "video":
        return list(itertools.starmap(small_video, VIDEOS))
    if kind == "picture":
        image = np.zeros((64, 64, 3), np.uint8)
        files = [(suffix, np.dstack([image, image[:, :, 0]])) for suffix in ".png .webp .bmp .tiff .jp2 .avif".split()]
        files += [(".png", image), (".jpg", image), (".ppm", image)]
        progressive = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_PROGRESSIVE, 1])[1].tobytes()
        return [progressive, *(cv2.imencode(*file)[1].tobytes() for file in files)]
    if kind == "csv":
        votes = ",".join([*readers.FERPLUS_COLUMNS, *readers.FERPLUS_OTHERS])
        return [
            f"emotion,pixels,Usage\n0,{PIXELS},Training\n3,{PIXELS},PublicTest\n".encode(),
            f"Usage,Image name,{votes}\nTraining,a.png,{','.join('1' * 10)}\n".encode(),
        ]
    layer = {"class_name": "Dense", "config": {"name": "dense", "units": 7, "activation": "softmax"}}
    first = {"class_name": "InputLayer", "config": {"name": "input", "batch_shape": [None, 48, 48, 1]}}
    flat = {"class_name": "Flatten", "config": {"name": "flat"}}
    network = {"class_name": "Sequential", "config": {"name": "small", "layers": [first, flat, layer]}}
    if kind == "facts":
        return [f"{json.dumps(METADATA)}\n{json.dumps(network)}".encode()]
    path = FOLDER / "seed.h5"
    with h5py.File(path, "w") as file:
        file.attrs["model_config"], file.attrs["facts"] = json.dumps(network), json.dumps(METADATA)
        file["model_weights/dense/kernel"] = np.ones((8, 7), np.float16)
        file["model_weights/dense/bias"] = np.zeros(7, np.float32)
        file["model_weights"].attrs["layer_names"] = [b"flat", b"dense"]
    return [path.read_bytes()]


def fuzz(kind, seconds, seed):
    """Does not return: libFuzzer ends the process."""
    corpus = FOLDER / "corpus"
    corpus.mkdir()
    good = seeds(kind)
    for number, content in enumerate(good):
        (corpus / str(number)).write_bytes(content)
    words = [sys.argv[0], str(corpus), f"-max_total_time={seconds}", f"-seed={seed}", "-timeout=3"]
    words += ["-rss_limit_mb=2048", f"-max_len={2 * max(map(len, good))}", "-print_final_stats=1"]
    atheris.Setup(words, KINDS[kind])
    atheris.Fuzz()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=KINDS, help="what to make up")
    parser.add_argument("--minutes", type=float, default=10, help="for how long (default: 10)")
    parser.add_argument("--seed", type=int, help=argparse.SUPPRESS)  # of one of the processes that this one starts
    options = parser.parse_args()
    if options.seed:
        return fuzz(options.kind, round(60 * options.minutes), options.seed)
    end, tried, library = time.monotonic() + 60 * options.minutes, 0, 0
    for seed in range(1, 10**6):
        minutes = (end - time.monotonic()) / 60
        if minutes < 0.05:
            break
        words = [sys.executable, __file__, options.kind, "--minutes", str(minutes), "--seed", str(seed)]
        child = subprocess.run(words, stderr=subprocess.PIPE, text=True, errors="replace")
        said, failed = child.stderr, child.returncode != 0  # a time-out while output is suppressed says nothing
        tried += sum(map(int, re.findall("number_of_executed_units: ([0-9]+)", said)))
        print(f"{tried} inputs, {library} crashes and endless loops of HDF5's library", flush=True)
        if "Uncaught Python exception" in said or (failed and options.kind != "h5"):
            sys.exit(f"{said}\nended with status {child.returncode}; the input lies in the working directory")
        library += failed
    print(f"{options.kind}: {tried} inputs tried, {library} crashes and endless loops of HDF5's library")


if __name__ == "__main__":
    main()
