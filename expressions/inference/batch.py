"""Label the faces in many files by many workers."""

import functools
import hashlib
import math
import os
import shutil
import time
import uuid
import zlib
from collections import deque
from contextlib import ExitStack

import cv2
from tqdm import tqdm

from expressions import UserError
from expressions.cli import escape_unprintable, print_error
from expressions.files import atomic_write
from expressions.inference import workers
from expressions.inference.recognizer import CASCADE, MODEL, ROOT, ExpressionRecognizer
from expressions.inference.sources import Source, expand_sources, is_camera, is_list, output_path, read_source_list
from expressions.inference.tables import Index, ParquetTable, Table, keep, kept
from expressions.inference.tracker import OVERLAP, PART, Numbering
from expressions.inference.types import Box, Face, Frame

PROGRAM = "realtime_detect.py"
PARTS = ".parts"  # in a folder of results, what is kept of long films until all their parts are there
LISTED = 20  # of the files that could not be done, those told at the end
BAR = "{l_bar}{bar}| {n}/{total}{unit} [{elapsed}<{remaining}{postfix}]"


def annotate(options):
    """Label the faces in many files by many workers: a table a file in a folder, and the index of them.

    A film of more than a part is labelled by as many workers as it has parts, and joined by another. Begun again, it
    leaves out what is done. Returns the exit status, 1 where a file could not be done."""
    folder, ending = (options.csv, ".csv") if options.csv else (options.parquet, ".parquet")
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: is a file; --workers and --ray take a folder, for a table a file")
    if ending == ".parquet":
        ParquetTable.library()
    names = (
        functools.partial(read_source_list, options.source)
        if is_list(options.source)
        else expand_sources(options.source).__iter__
    )
    total = sum(1 for _ in names())
    if total == 1 and next(names()) == options.source and not os.path.exists(options.source):
        raise UserError(f"--source {options.source}: no such file; --workers and --ray label files, and no cameras")
    # a faulty model or cascade is reported here, and the network is compiled once for all workers
    ExpressionRecognizer(options.model, options.cascade, options.votes)
    used = [
        None if path == own else path.absolute() for path, own in ((options.model, MODEL), (options.cascade, CASCADE))
    ]
    made_by = hashlib.sha256(repr((options.votes, ending, PART, OVERLAP)).encode())
    for path in (options.model, options.cascade):
        made_by.update(path.read_bytes())
    job = (*used, options.votes, folder.absolute(), ending, made_by.hexdigest()[:16])
    hired = workers.processes(options.workers) if options.workers else workers.cluster(options.ray, ROOT)
    films, urgent, failures = {}, deque(), []  # films: those in the making, how many parts they have, and have done
    frames = faces = done = before = 0
    with ExitStack() as stack:
        hired = stack.enter_context(hired)
        index = stack.enter_context(Index(folder, job[-1]))
        bar = stack.enter_context(tqdm(unit=" files", total=total, bar_format=BAR))

        def tasks():
            nonlocal before
            for name in names():
                result = output_path(name, options.source) + ending
                if index.due(name, result):
                    yield annotate_part, job, name, os.path.abspath(name), result, 0
                else:
                    before += 1
                    bar.update()

        began = time.perf_counter()
        for (_, _, name, path, result, part), outcome in workers.work(hired, tasks(), urgent):
            if isinstance(outcome, Exception):
                outcome = f"{name}: given up after {workers.ATTEMPTS} workers died on it; is there too little memory?"
            if part and name not in films:  # failed already
                continue
            if isinstance(outcome, int):  # a part of a film is done, which has so many as far as is known
                parts, parts_done = films.get(name, (1, 0))
                urgent.extend((annotate_part, job, name, path, result, number) for number in range(parts, outcome))
                films[name] = parts, parts_done = max(parts, outcome), parts_done + 1
                if parts == parts_done:
                    urgent.append((join_parts, job, name, path, result, parts))
                continue
            films.pop(name, None)
            bar.update()
            if isinstance(outcome, str):
                index.fail(name, outcome)
                failures.append(outcome)
                del failures[LISTED:]
                continue
            index.add(name, result, outcome)
            done, frames, faces = done + 1, frames + outcome[1], faces + outcome[2]
            bar.set_postfix_str(f"{frames / (time.perf_counter() - began):.1f} frames/s", refresh=False)
        passed = time.perf_counter() - began
        shutil.rmtree(folder / PARTS, ignore_errors=True)
    left_out = f", {before} done before or named twice" if before else ""
    print(f"{done} files{left_out}: {frames} frames, {faces} faces, {frames / passed:.1f} frames/s; see {index.path}")
    for line in failures:
        print_error(PROGRAM, line)
    if index.failed:
        print_error(PROGRAM, f"{options.source}: {index.failed} files could not be done; see {index.failures}")
    return 1 if index.failed else 0


@functools.cache
def worker_recognizer(model, cascade, votes):
    """A worker's ExpressionRecognizer. It uses one processor, for the others have workers of their own."""
    cv2.setNumThreads(1)
    os.environ.setdefault("OPENCV_FFMPEG_CAPTURE_OPTIONS", "threads;1")
    return ExpressionRecognizer(model or MODEL, cascade or CASCADE, votes, threads=1)


def annotate_part(job, name, path, result, part):
    """A worker's task: label a file; of a film longer than PART only this part of it, kept for `join_parts`.

    Returns what `Index.add` counts; of a long film how many parts it has, as far as can be told by then; or a text, why
    it can't be done. Raises UserError where the recognizer can't work, for it will not for other files either."""
    recognizer, start, end = worker_recognizer(*job[:3]), part * PART, (part + 1) * PART
    try:
        if is_camera(path):  # which has no end
            raise UserError(f"{name}: is no file; --workers and --ray label files, and no cameras")
        file = part_file(job, path, part)
        if file.exists():  # from a run that was stopped
            return kept(file)[1]["parts"]
        with Source(path, start=max(0, start - OVERLAP)) as source:
            parts = math.ceil(source.frame_count / source.fps / PART) if source.frame_count else 1
            if part == 0 and parts == 1:
                return (
                    *write_table(job, name, result, watch(source, recognizer)),
                    source.skipped,
                    source.missing_seconds,
                )
            tracker, frames, skipped, before = recognizer.new_tracker(), [], 0, 0
            for frame in source:
                if frame.seconds >= end:
                    parts = max(parts, part + 2)
                    break
                shared = frame.seconds < start or frame.seconds >= end - OVERLAP
                gray = cv2.cvtColor(frame.image, cv2.COLOR_BGR2GRAY)
                sum_of_frame = zlib.crc32(frame.image) if shared else 0
                frames.append((frame.seconds, sum_of_frame, recognizer.follow(tracker, gray, frame.seconds)))
                skipped = source.skipped
                if frame.seconds < start:  # the part before counts these
                    before = skipped
            keep(file, frames, parts=parts, skipped=skipped - before, missing=source.missing_seconds)
            return parts
    except Exception as error:  # whatever this file makes of a library; the others go on
        return reason(error, name)


def join_parts(job, name, path, result, parts):
    """A worker's task: make a table of the parts of a film that `annotate_part` kept. Returns what that returns.

    Where two parts don't have the same frames in the time that they share, the film can't be entered in its middle;
    then it is labelled from its beginning to its end here."""
    try:
        files = [part_file(job, path, part) for part in range(parts)]
        try:
            notes = []
            counts = (
                *write_table(job, name, result, joined(files, notes)),
                sum(n["skipped"] for n in notes),
                notes[-1]["missing"],
            )
        except UnlikePartsError:
            with Source(path) as source:
                recognizer = worker_recognizer(*job[:3])
                counts = (
                    *write_table(job, name, result, watch(source, recognizer)),
                    source.skipped,
                    source.missing_seconds,
                )
        for file in files:
            file.unlink()
        return counts
    except Exception as error:
        return reason(error, name)


def reason(error, name):
    if isinstance(error, OSError):
        error = UserError(f"{name}: {error.strerror or error}")
    return escape_unprintable(error if isinstance(error, UserError) else f"{name}: {type(error).__name__}: {error}")


def watch(source, recognizer):
    """The Frames of a source and the faces in each, one after the other, as when it is shown."""
    recognizer.reset()
    for frame in source:
        yield frame, recognizer.recognize(frame.image, None if source.is_image else frame.seconds)


def write_table(job, name, result, seen):
    """Write the table of a file, whose Frames and faces `seen` gives; it gets its name once it is whole.

    Returns the time of the last frame in seconds, and how many frames, faces and people there are."""
    labels, folder, ending = worker_recognizer(*job[:3]).labels, *job[3:5]
    path, partial = folder / result, folder / PARTS / f"{uuid.uuid4().hex}{ending}"
    for place in (path, partial):
        place.parent.mkdir(parents=True, exist_ok=True)
    frames, faces_seen, people = 0, 0, set()
    with atomic_write(path, partial), (Table if ending == ".csv" else ParquetTable)(partial, labels) as table:
        for frame, faces in seen:
            table.write(name, frame, faces)
            frames, faces_seen = frames + 1, faces_seen + len(faces)
            people.update(face.track_id for face in faces)
    return round(frame.seconds, 3), frames, faces_seen, len(people)


def part_file(job, path, part):
    """Where a part of the film at `path`, as it is now, is kept until its table is written."""
    *_, folder, _, made_by = job
    status = os.stat(path)
    film = hashlib.sha256(repr((path, status.st_size, status.st_mtime_ns, made_by)).encode()).hexdigest()
    return folder / PARTS / f"{film[:32]}-{part}.npz"


class UnlikePartsError(Exception):
    """Two parts of a film don't have the same frames in the time that they share."""


def joined(files, notes):
    """The Frames (without their pictures) of a film and the faces in each, from the files of all its parts, whose notes
    are added to `notes`."""
    numbering, number, before = Numbering(), 0, []
    for part, (frames, noted) in enumerate(map(kept, files)):
        notes.append(noted)
        start, end = part * PART, (part + 1) * PART
        frames = [
            (*frame, [Face(Box(*box), *rest, number, probabilities) for number, box, *rest, probabilities in faces])
            for *frame, faces in frames
        ]
        shared = [frame for frame in frames if frame[0] < start]
        if part and ([frame[:2] for frame in before] != [frame[:2] for frame in shared] or not shared):
            raise UnlikePartsError
        for (_, _, faces), (_, _, others) in zip(before, shared, strict=True):
            numbering.meet(faces, others)
        if part:
            numbering.change()
        for seconds, _, faces in frames[len(shared) :]:
            yield Frame(None, number, seconds), numbering.name(faces)
            number += 1
        before = [frame for frame in frames if frame[0] >= end - OVERLAP]
