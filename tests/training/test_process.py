"""Processes are told apart: living and dead ones, of this machine and of others, and one id given twice."""

from __future__ import annotations

import subprocess
import sys

from latentaug.training.process import Process


def test_the_running_process_is_near_and_lives() -> None:
    this = Process.this()
    assert this.is_near()
    assert this.lives()
    assert str(this) == f"process {this.pid} on {this.host}"


def test_a_process_that_has_ended_does_not_live() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as child:
        child.wait()
    assert not Process(Process.this().host, child.pid).lives()


def test_an_id_that_another_process_has_got_is_not_the_same_process() -> None:
    this = Process.this()
    assert this._replace(started="").lives()
    assert not this._replace(started="1").lives()


def test_processes_of_other_machines_and_containers_are_not_near() -> None:
    this = Process.this()
    assert not this._replace(host="another-machine").is_near()
    assert not this._replace(namespace="pid:[1]").is_near()


def test_the_first_process_of_all_lives_although_it_is_not_ours() -> None:
    assert Process(Process.this().host, 1).lives()
