"""The index on a PostgreSQL server: who may have it, and what happens when it goes away."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time

import pytest

pytest.importorskip("fastapi", reason="the group 'speech' is not installed")

import sqlalchemy as sa
from fastapi.testclient import TestClient

from ewc_tutorial.speech.app import create_app
from ewc_tutorial.speech.base import prepare
from ewc_tutorial.speech.database import Database
from ewc_tutorial.speech.errors import AlreadyServedError
from ewc_tutorial.speech.index import Index
from ewc_tutorial.speech.jobs import Jobs
from ewc_tutorial.speech.settings import Settings


def together(functions):
    """Call all at the same moment, each in a thread; return what they return."""
    start, results = threading.Barrier(len(functions)), [None] * len(functions)

    def run(i):
        start.wait()
        results[i] = functions[i]()

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(functions))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def claim_all(place, wanted, start, said):
    jobs = Jobs(Database(place))
    start.wait(60)
    said.put([job for job in wanted if jobs.claim(job, {}, 1, "base")])


@pytest.mark.skipif(os.name == "nt", reason="Windows cannot fork")
def test_of_several_processes_one_gets_a_job_and_only_one_job_is_at_work(indexes, tmp_path):
    place = indexes.place(tmp_path)
    jobs = Jobs(Database(place))
    wanted = [jobs.create({}, 1, "base") for _ in range(4)]
    fork = multiprocessing.get_context("fork")  # the others need seconds to import this
    start, said = fork.Barrier(3), fork.Queue()
    processes = [
        fork.Process(target=claim_all, args=(place, [*wanted[i:], *wanted[:i]], start, said))
        for i in range(3)
    ]
    for process in processes:
        process.start()
    claimed = [said.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    job = jobs.unfinished()
    assert sorted(claimed, key=len) == [[], [], [job]]
    # Threads of one process and of another one, and a job that is cancelled meanwhile.
    jobs.cancel(job)
    rest = [j for j in wanted if j != job]
    others = [jobs, Jobs(Database(place))]
    claims = [lambda j=j, o=o: (j, o.claim(j, {}, 1, "x")) for j in rest for o in others * 3]
    assert [j for j, claimed in together(claims) if claimed] == [jobs.unfinished()]
    jobs.cancel(rest[0])
    assert not jobs.claim(rest[0], {}, 1, "base")
    assert jobs.get(rest[0])["state"] == "cancelled"


def test_what_many_write_at_once_is_all_kept(indexes, tmp_path):
    place = indexes.place(tmp_path)
    jobs, others = Jobs(Database(place)), Jobs(Database(place))
    job = jobs.create({"plan": {"lam": 1.5}}, 7, "base")
    writers = [lambda i=i: (jobs, others)[i % 2].add_results(job, {f"k{i}": i}) for i in range(12)]
    writers += [lambda i=i: jobs.add_loss(job, i, 1.0 / 3.0, float(i)) for i in (3, 1, 2)]
    together(writers)
    jobs.add_loss(job, 2, 1.0 / 7.0, 0.0)
    row = jobs.get(job)
    assert row["results"] == {f"k{i}": i for i in range(12)}
    assert [loss["step"] for loss in row["losses"]] == [1, 2, 3]
    assert [loss["loss"] for loss in row["losses"]] == [1 / 3, 1 / 7, 1 / 3]
    # What serves the model happens once, or not at all where somebody has cancelled the job.
    served = []
    ends = [
        lambda: jobs.finish(job, "m", lambda: served.append(1) or {"removed": []}),
        lambda: others.cancel(job),
    ]
    done, _ = together(ends)
    assert (jobs.get(job)["state"], len(served)) == (("done", 1) if done else ("cancelled", 0))
    assert jobs.finish(job, "n", lambda: served.append(2) or {}) is False
    assert 2 not in served


@pytest.mark.parametrize("odd", ["", "\0", "'; DROP TABLE jobs; --", "%s", "ü" * 300])
def test_no_id_that_somebody_sends_is_an_error_of_the_index(indexes, tmp_path, odd):
    database = Database(indexes.place(tmp_path))
    assert Index(database).get(odd) is None
    assert Jobs(database).get(odd) is None


def test_an_index_on_a_server_has_one_service_and_commits_reach_its_disk(server):
    address = server.new("alone")
    first, second = Database(address), Database(address)
    held = first.hold("server")
    with pytest.raises(AlreadyServedError, match="EWC_SPEECH_DATABASE"):
        second.hold("server", seconds=0.2)
    second.hold("worker").invalidate()
    held.invalidate()
    second.hold("server", seconds=5.0).invalidate()
    server.run("ALTER ROLE postgres SET synchronous_commit = off")
    try:
        with Database(address).connection() as connection:
            assert connection.scalar(sa.text("SHOW synchronous_commit")) == "on"
    finally:
        server.run("ALTER ROLE postgres RESET synchronous_commit")


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("postgresql://nobody@127.0.0.1:1/x", "refused"),
        ("postgresql://user:a-password@host:port/x", "port"),
        ("postgresql:nonsense", "parse"),
    ],
)
def test_a_wrong_address_is_a_sentence_at_the_start(refused_start, address, words):
    said = refused_start(DATABASE=address)
    assert said.startswith("EWC_SPEECH_DATABASE cannot be used: ")
    assert words in said
    assert "\n" not in said
    assert "a-password" not in said


def test_a_lost_connection_is_a_sentence_and_all_goes_on_after_it(
    server, tmp_path, settings, new_speech
):
    read = Settings(**settings | {"data": tmp_path / "data", "database": server.new("lost")})
    read.data.mkdir()
    prepare(read)
    with TestClient(create_app(read), "http://localhost", client=("127.0.0.1", 5)) as client:

        def send(i):
            path, text = new_speech[i]
            return client.post(
                "/upload/corrections", files={"audio": ("x.wav", path.read_bytes())},
                data={"text": text},
            )  # fmt: skip

        assert send(0).status_code == 201
        for times in range(2):
            server.stop()
            try:
                assert client.get("/health").json()["status"] == "degraded"
                for answer in (send(1 + times), client.get("/corrections"), client.get("/metrics")):
                    assert answer.status_code == 503
                    assert answer.json()["detail"].startswith("The service cannot reach its index")
                    assert "127.0.0.1" not in answer.text
                waiting = threading.Timer(1.0, server.start)
                waiting.start()
                # Who can wait, waits.
                patient = Jobs(Database(read.index, patience=60.0)).states()
            finally:
                waiting.join()
            assert patient == {}
            assert send(1 + times).status_code == 201
        assert client.get("/health").json()["status"] == "ok"
        assert client.get("/corrections").json()["total"] == 3
        service = client.app.state.service
        assert {
            p.name for p in service.corrections.folder.iterdir()
        } == service.corrections.index.ids()
        deadline = time.monotonic() + 20.0
        # A restart of the server has ended what kept a second service out; it is taken again.
        while True:
            try:
                Database(read.index).hold("server").invalidate()
            except AlreadyServedError:
                break
            assert time.monotonic() < deadline
            time.sleep(0.2)
