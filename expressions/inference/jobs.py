"""What a worker does: label a file, or one segment of a long video. A Job goes in, an outcome comes out.

Workers share a video of more than SEGMENT_SECONDS: each labels some of its segments and saves them in the folder of
results. When all are there, one more job stitches them into the video's table.
"""

import functools
import hashlib
import itertools
import json
import math
import os
import uuid
import zlib
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import cv2

from expressions import UserError
from expressions.cli import escape_unprintable
from expressions.files import atomic_write
from expressions.inference.names import is_camera
from expressions.inference.recognizer import MODEL, ExpressionRecognizer
from expressions.inference.sources import Source
from expressions.inference.tables import Table, convert_to_parquet
from expressions.inference.tracker import SEGMENT_OVERLAP, SEGMENT_SECONDS, Tracker, TrackStitcher
from expressions.inference.types import Box, Face, Frame

UNFINISHED = ".parts"  # in the folder of results: segments, and tables that are being written


class Settings(NamedTuple):
    """What all jobs of a run share. model: None for the program's own, so that each machine uses its own."""

    model: Path | None
    detector: str  # "haar", "yunet" or an absolute path
    folder: Path  # of the results
    suffix: str  # of the tables
    config_hash: str


class Job(NamedTuple):
    """Label a file; of a long video one segment, or stitch all its segments where `segment` is None."""

    settings: Settings
    source: str  # as the user named it
    path: str  # the same, absolute
    result: str  # path of the table in the folder
    segment: int | None = 0
    segments: int = 1  # how many there are, as far as is known


class Done(NamedTuple):
    """The table is written. The fields are columns of the index."""

    seconds: float
    frames: int
    faces: int
    people: int
    broken: int
    missing: float


class SegmentDone(NamedTuple):
    """A segment is saved."""

    segments: int  # how many the video has, as it says of itself
    has_frames: bool = True


class Failed(NamedTuple):
    """The file can't be labelled."""

    message: str


class _SegmentFrame(NamedTuple):
    seconds: float
    checksum: int  # of its pixels, where another segment has it too, else 0
    broken: int  # frames skipped since the segment was entered
    faces: list[Face]


class _SegmentMismatchError(Exception):
    pass


def run_job(job: Job) -> Done | SegmentDone | Failed:
    """Do a job in a worker. Raises UserError without a recognizer, for no other job can be done either."""
    recognizer = worker_recognizer(job.settings)
    try:
        return _label(job, recognizer) if job.segment is not None else _label_stitched(job, recognizer)
    except UserError as error:
        message = error
    except OSError as error:
        message = f"{job.source}: {error.strerror or error}"
    except Exception as error:  # whatever this file makes a library raise; the others go on
        message = f"{job.source}: {type(error).__name__}: {error}"
    return Failed(escape_unprintable(message))


@functools.cache
def worker_recognizer(settings: Settings) -> ExpressionRecognizer:
    """Return the recognizer of this process; it uses one processor, because the others have workers of their own."""
    cv2.setNumThreads(1)
    return ExpressionRecognizer(settings.model or MODEL, settings.detector, threads=1)


def _label(job, recognizer):
    """Write the table of a file; of a long video, save one segment, labelled by a tracker of its own."""
    if is_camera(job.path):  # it would never end
        raise UserError(f"{job.source}: is no file; --workers and --ray label files, and no cameras")
    path = _segment_path(job, job.segment)
    if path.exists():  # from a run that was stopped
        frames, segments, _ = _load_segment(path)
        return SegmentDone(segments, bool(frames))
    start, end = job.segment * SEGMENT_SECONDS, (job.segment + 1) * SEGMENT_SECONDS
    with Source(job.path, start=max(0, start - SEGMENT_OVERLAP)) as source:
        segments = math.ceil(source.frame_count / source.fps / SEGMENT_SECONDS) if source.frame_count else 1
        if job.segment == 0 and segments == 1:
            return _label_whole(job, source, recognizer)
        tracker, frames, goes_on = Tracker(recognizer.detector), [], False
        for frame in source:
            if frame.seconds >= end:
                segments, goes_on = max(segments, job.segment + 2), True  # a video may be longer than it says
                break
            gray = cv2.cvtColor(frame.image, cv2.COLOR_BGR2GRAY)
            faces = recognizer.recognize_tracks(tracker, gray, frame.seconds)
            is_shared = not start <= frame.seconds < end - SEGMENT_OVERLAP
            checksum = zlib.crc32(frame.image) if is_shared else 0
            frames.append(_SegmentFrame(frame.seconds, checksum, source.skipped, faces))
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path, path.with_name(uuid.uuid4().hex)) as partial:
        missing = None if goes_on else source.missing_seconds
        partial.write_text(json.dumps((frames, segments, missing)))
    return SegmentDone(segments, bool(frames))


def _segment_path(job, number):
    """Where a segment is saved. The name changes with the video and with the settings."""
    status = os.stat(job.path)
    video = repr((job.path, status.st_size, status.st_mtime_ns, job.settings.config_hash)).encode()
    return job.settings.folder / UNFINISHED / f"{hashlib.sha256(video).hexdigest()[:32]}-{number}.json"


def _load_segment(path):
    """Return what is saved of a segment.

    Its frames; how many segments its video has, as far as is known; and how many seconds are missing at the end of the
    video, None if there are frames after the segment.
    """
    frames, segments, missing = json.loads(path.read_bytes())
    for _, _, _, faces in frames:
        faces[:] = [Face(Box(*box), *values, tuple(row)) for box, *values, row in faces]
    return [_SegmentFrame(*frame) for frame in frames], segments, missing


def _label_whole(job, source, recognizer):
    recognizer.reset()
    seen = ((frame, recognizer.recognize(frame.image, None if source.is_image else frame.seconds)) for frame in source)
    return Done(*_write_table(job, recognizer.labels, seen), source.skipped, source.missing_seconds)


def _label_stitched(job, recognizer):
    """Write the table of a video from its segments; if these don't fit together, label the video as a whole."""
    paths, counts = [_segment_path(job, number) for number in range(job.segments)], Counter()
    try:
        done = Done(*_write_table(job, recognizer.labels, _stitch_segments(paths, counts)), **counts)
    except (_SegmentMismatchError, FileNotFoundError):  # a process that had written the table may have died
        with Source(job.path) as source:
            done = _label_whole(job, source, recognizer)
    for path in paths:
        path.unlink(missing_ok=True)
    return done


def _stitch_segments(paths, counts):
    """Yield the frames of a video, without images, and the faces in each; count what is broken and missing."""
    stitcher, numbers, overlap, goes_on = TrackStitcher(), itertools.count(), [], True
    for index, path in enumerate(paths):
        frames, _, missing = _load_segment(path)
        start = index * SEGMENT_SECONDS
        shared = [frame for frame in frames if index and frame.seconds < start]
        # a video may be shorter than it says, but no segment may lack the frames that the one before it saw coming
        is_lost = goes_on and not frames and missing is not None
        is_apart = [frame[:2] for frame in shared] != [frame[:2] for frame in overlap]
        if is_lost or is_apart or (index and frames and not shared):
            raise _SegmentMismatchError
        for before, after in zip(overlap, shared, strict=True):
            stitcher.add_overlap(before.faces, after.faces)
        stitcher.next_segment()
        for frame in frames[len(shared) :]:
            yield Frame(None, next(numbers), frame.seconds), stitcher.assign_ids(frame.faces)
        goes_on = missing is None
        if frames:
            counts["missing"] = missing or 0.0
            counts["broken"] += frames[-1].broken - (shared[-1].broken if shared else 0)
        overlap = [frame for frame in frames if frame.seconds >= start + SEGMENT_SECONDS - SEGMENT_OVERLAP]
    if goes_on:
        raise _SegmentMismatchError


def _write_table(job, labels, seen):
    """Write the table of a file, as a whole or not at all. Returns the first four values of Done."""
    path = job.settings.folder / job.result
    partial = job.settings.folder / UNFINISHED / f"{uuid.uuid4().hex}.csv"
    for file in (path, partial):
        file.parent.mkdir(parents=True, exist_ok=True)
    frame_count, face_count, people = 0, 0, set()
    with atomic_write(path, partial):
        with Table(partial, labels) as table:
            for frame, faces in seen:
                table.write(job.source, frame, faces)
                frame_count, face_count = frame_count + 1, face_count + len(faces)
                people.update(face.track_id for face in faces)
        if path.suffix == ".parquet":
            convert_to_parquet(partial, labels)
    return round(frame.seconds, 3), frame_count, face_count, len(people)
