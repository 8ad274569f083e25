"""The protocol of orders, workers and one ComfyUI server as states and steps, small enough to look at every one.

Time is left out: what may come at some moment may come at any. Two facts about time are kept, because the lease is
chosen for them: it does not end while a POST is on its way, nor between the last look at the row and the send.
`slow_posts` and `stalls` take them away. A request whose connection broke has arrived or is lost when its sender has
looked twice; one that nobody answered may arrive as long as the lease lasts.

Messages are there or not: who gets one does not take it away, so it comes again, to several at once too. Workers die
between any two steps, as often as they like. Versions only ever get compared with the row's, so a worker keeps how many
moves the row has made since it was read (0, 1, many).

Each step names the method that it stands for. Two steps of a worker are one here when nothing that others do between
them changes what comes of it: reading rows and asking the provider about them, then the compare-and-set alone decides.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from tests.model.explore import Step
from tests.model.world import (
    CANCELLED,
    COMPLETED,
    DONE,
    ENDED,
    FAILED,
    FINAL,
    GONE,
    IDLE,
    LIVE,
    NONE,
    PENDING,
    PROCESSING,
    SUBMITTING,
    Row,
    Worker,
    World,
    canonical,
    is_being_said,
    on_the_wire,
    pending_again,
    with_job,
    with_move,
    with_poller,
    with_row,
    with_submitter,
)


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """The bounds of a world, and what is taken out of the protocol. Of everything not named there is no limit.

    tries   -- charged attempts an order has
    busy    -- refused POSTs: each makes an attempt more
    replays, adopts -- how often people may
    permits -- False: there is always one, since the scheduler makes one wherever a row is free to take
    without -- the guard that is missing
    """

    orders: int = 1
    submitters: int = 2
    pollers: int = 2
    capacity: int = 1
    tries: int = 1
    busy: int = 0
    replays: int = 0
    adopts: int = 0
    cancels: bool = True
    deadlines: bool = True
    permits: bool = False
    slow_posts: bool = False
    stalls: bool = False
    without: str = ""

    def start(self) -> World:
        return World(
            rows=(Row(),) * self.orders,
            submitters=(IDLE,) * self.submitters,
            pollers=(IDLE,) * self.pollers,
            permit=not self.permits,
            busy=self.busy,
            replays=self.replays,
            adopts=self.adopts,
        )

    # --- what must be true ----------------------------------------------------------------------------------------

    def wrong(self, world: World) -> str | None:
        """The promise this state breaks."""
        for order, row in enumerate(world.rows):
            if row.double and not row.counted:
                return f"two provider jobs of order {order}"
            if row.counted:
                continue  # the server may have a job more than the rows know
            for attempt, job in enumerate(row.jobs, 1):
                is_held = row.owed or (row.status in {SUBMITTING, PROCESSING} and attempt == row.attempt)
                if job == LIVE and not is_held:
                    return f"a live job of order {order} that holds no slot"
            if row.status in FINAL and not row.due and not row.said and not is_being_said(world, order):
                return f"order {order} is {row.status}, and nobody will ever say so"
            if row.told and not row.said:
                return f"order {order} counts as told, and nobody was"
            if row.status not in FINAL | {NONE} and not row.due:
                return f"order {order} is {row.status} without a moment at which somebody looks"
        if sum(row.holds_slot for row in world.rows) > self.capacity:
            return "more in flight than the backend takes"
        return None

    def is_settled(self, world: World) -> bool:
        return all(row.status in FINAL and not row.due for row in world.rows)

    def possible_double(self, world: World) -> str | None:
        return "possible_double" if any(row.double and row.counted for row in world.rows) else None

    # --- the steps ------------------------------------------------------------------------------------------------

    def steps(self, world: World) -> Iterator[Step[World]]:
        """Everything that may happen next; True where nobody need be unlucky, and no person act, for it to happen."""
        for label, is_own, after in self._steps(world):
            yield label, is_own, canonical(after)

    def _steps(self, world: World) -> Iterator[Step[World]]:
        for order, row in enumerate(world.rows):
            yield from self._time(world, order, row)
            yield from self._people(world, order, row)
            if row.buried:
                yield from self._collect(world, order, row)
        yield from self._server(world)
        if not world.permit and any(row.status in {PENDING, SUBMITTING} and not row.lease for row in world.rows):
            yield "Schedule.make_permits: a permit for the free row", True, world._replace(permit=True)
        if world.permit and self.permits:
            yield "Consumer: a permit is acked", True, world._replace(permit=False)
        for place, worker in enumerate(world.submitters):
            if worker == IDLE:
                if world.permit:
                    yield from self._take(world, place)
            else:
                yield from self._submit(world, place, worker)
                left = on_the_wire(world, worker) if worker.does == "posting" else world
                yield "a submitter dies", False, with_submitter(left, place, IDLE)
        for place, worker in enumerate(world.pollers):
            if worker == IDLE:
                for order, row in enumerate(world.rows):
                    yield from self._look(world, place, order, row)
            else:
                yield from self._check(world, place, worker)
                yield "a poller dies", False, with_poller(world, place, IDLE)

    # --- time, people, the server ---------------------------------------------------------------------------------

    def _time(self, world: World, order: int, row: Row) -> Iterator[Step[World]]:
        """Intake.handle, Schedule.turn, and moments that come."""
        if row.status == NONE:
            born = Row(status=PENDING, due=True)
            yield "Intake.handle: claim", True, with_move(world, order, born)._replace(permit=True)
        if row.lease and (ended := self._lease_ends(world, order, row)):
            yield "the lease ends", True, ended
        if self.deadlines and not row.late and row.status in {PENDING, SUBMITTING, PROCESSING}:
            yield "the deadline passes", False, with_row(world, order, row._replace(late=True))
        is_looked_at = row.status == PROCESSING or (row.status == SUBMITTING and row.late and not row.lease)
        if row.due and not row.check and (is_looked_at or (row.status in FINAL and not row.lease)):
            yield "Schedule.turn: a check message", True, with_row(world, order, row._replace(check=True))
        if row.check:
            yield "Consumer: a check is acked, or lost", False, with_row(world, order, row._replace(check=False))

    def _lease_ends(self, world: World, order: int, row: Row) -> World | None:
        """None while that cannot be: the lease is longer than all that a submission may take."""
        at_work = [w for w in world.submitters if (w.order, w.attempt) == (order, row.attempt)]
        posting = any(w.does in {"posting", "doubt", "silence"} for w in at_work) or (order, row.attempt) in world.wire
        checked = any(w.does == "checked" for w in at_work)
        if (posting and not self.slow_posts) or (checked and not self.stalls):
            return None
        return with_row(world, order, row._replace(lease=False, counted=row.counted or posting or checked))

    def _people(self, world: World, order: int, row: Row) -> Iterator[Step[World]]:
        if self.cancels and row.status in {PENDING, SUBMITTING, PROCESSING}:
            yield "Tasks.cancel", False, with_move(world, order, self._cancelled(row))
        if row.status != FAILED or row.owed:
            return
        if world.replays and row.letter == "open":
            # Replayer publishes an event that is not known to be out, and the replay names the row's version then.
            again = row._replace(status=PENDING, charged=0, late=False, due=True, told=False, said=False, lease=False)
            again = again._replace(letter="closed", is_newer=False)
            yield "Replays.replay", False, with_move(world, order, again)._replace(replays=world.replays - 1)
        used = sum(other.holds_slot for other in world.rows)
        if world.adopts and row.attempt and not row.due and used < self.capacity:
            job = row._replace(status=PROCESSING, charged=self.tries - 1, late=False, due=True, told=False, said=False)
            job = job._replace(letter="closed" if job.letter else "", is_newer=False)
            yield "adopt", False, with_move(world, order, job)._replace(adopts=world.adopts - 1)

    def _cancelled(self, row: Row) -> Row:
        """From submitting, due_at stays at the end of the lease."""
        begun = row.status != PENDING
        waits = row.status == SUBMITTING and row.lease and self.without != "cancel waits for the lease"
        return self._ended(row, CANCELLED, owed=begun)._replace(lease=waits)

    def _collect(self, world: World, order: int, row: Row) -> Iterator[Step[World]]:
        """DeadLetters.record: once, and open again when the row failed again after it was written or closed."""
        if not row.letter or (row.letter == "closed" and row.status == FAILED and row.is_newer):
            row = row._replace(letter="open", is_newer=False)
            yield "Collector.handle: records, dies before its ack", False, with_row(world, order, row)
        yield "Collector.handle: records and acks", True, with_row(world, order, row._replace(buried=False))

    def _server(self, world: World) -> Iterator[Step[World]]:
        for place, (order, attempt) in enumerate(world.wire):
            left = world._replace(wire=world.wire[:place] + world.wire[place + 1 :])
            yield "a POST arrives late", False, self._arrived(left, order, attempt)
            yield "a POST is lost", True, left
        for order, row in enumerate(world.rows):
            for attempt, job in enumerate(row.jobs, 1):
                if job == LIVE:
                    yield "the job is done", True, with_job(world, order, attempt, DONE)
                    yield "the job fails", False, with_job(world, order, attempt, ENDED)
        if any(job in {LIVE, ENDED} for row in world.rows for job in row.jobs):
            forgot = tuple(r._replace(jobs=tuple(j if j == DONE else GONE for j in r.jobs)) for r in world.rows)
            yield "the server restarts and has only its files", False, world._replace(rows=forgot)

    def _arrived(self, world: World, order: int, attempt: int) -> World:
        """A job is there; double when one of this attempt was there already, or one of another attempt still runs."""
        row = world.rows[order]
        double = row.jobs[attempt - 1] != GONE or LIVE in row.jobs
        return with_job(with_row(world, order, row._replace(double=row.double or double)), order, attempt, LIVE)

    # --- submitters -----------------------------------------------------------------------------------------------

    def _take(self, world: World, place: int) -> Iterator[Step[World]]:
        """Slots.take, and for a row that somebody had before Start._try: `find` first."""
        counted = [row.owed for row in world.rows] if self.without != "owed cancels count" else []
        used = sum(row.status in {SUBMITTING, PROCESSING} for row in world.rows) + sum(counted)
        for order, row in enumerate(world.rows):
            if row.late or row.status not in {PENDING, SUBMITTING}:
                continue
            if row.status == PENDING and used < self.capacity:
                number = row.attempt + 1
                taken = row._replace(status=SUBMITTING, attempt=number, lease=True, due=True, jobs=(*row.jobs, GONE))
                taken = taken._replace(check=False, buried=False, letter="", is_newer=False)
                mine = Worker("ready", order, 0, number)
                yield "Slots.take: a pending row", True, with_submitter(with_move(world, order, taken), place, mine)
            elif row.status == SUBMITTING and not row.lease:
                found = row.job != GONE and self.without != "asking first"
                does = "record" if found else "ready"
                mine = Worker(does, order, 0, row.attempt)
                after = with_submitter(with_move(world, order, row._replace(lease=True, due=True)), place, mine)
                yield f"Slots.take: takes over, finds the job {row.job}", True, after

    def _submit(  # noqa: PLR0912 - one table of what a submitter may be doing
        self, world: World, place: int, worker: Worker
    ) -> Iterator[Step[World]]:
        """Start._try and what comes of it. In a doubt, flag says that the one repeated POST is used up."""
        order, attempt = worker.order, worker.attempt
        row = world.rows[order]

        def on(does: str, after: World = world, *, flag: bool = False) -> World:
            return with_submitter(after, place, worker._replace(does=does, flag=flag))

        match worker.does:
            case "ready":
                yield self._may_post(world, place, worker)
                if world.busy:
                    yield "prepare: busy", False, self._give_back(world, place, worker)
            case "checked":
                yield "Provider.submit: the POST leaves", True, on("posting", flag=worker.flag)
            case "posting":
                yield "POST: accepted", True, on("record", self._arrived(world, order, attempt))
                yield "POST: rejected", False, self._fail(world, place, worker)
                if world.busy:
                    yield "POST: refused", False, self._give_back(world, place, worker)
                yield "POST: the connection breaks", False, on("doubt", on_the_wire(world, worker), flag=worker.flag)
                yield "POST: silence", False, on("silence", on_the_wire(world, worker), flag=worker.flag)
            case "doubt":
                if (order, attempt) in world.wire:
                    return  # the two looks come after its time
                if row.jobs[attempt - 1] != GONE:
                    yield "ComfyUI._settle: found", True, on("record")
                elif not worker.flag:
                    yield "ComfyUI._settle: proven absent, once more", True, on("posting", flag=True)
                else:
                    yield "Start._doubt: left to the end of the lease", True, with_submitter(world, place, IDLE)
            case "silence":
                if row.jobs[attempt - 1] != GONE:
                    yield "ComfyUI._settle: found", True, on("record")
                elif self.without == "leaving silence to the lease" and not worker.flag:
                    yield "ComfyUI._settle: not there, once more", True, on("posting", flag=True)
                else:
                    yield "Start._doubt: left to the end of the lease", True, with_submitter(world, place, IDLE)
            case "record":
                yield self._record(world, place, worker)
            case "pay":
                yield "Settling: the last word is confirmed", True, on("clear", self._said(world, worker))
            case "clear":
                yield "Tasks.clear_due", True, with_submitter(self._clear(world, worker), place, IDLE)

    def _may_post(self, world: World, place: int, worker: Worker) -> Step[World]:
        """Tasks.may_post, else Ends.not_sent."""
        row = world.rows[worker.order]
        ready = worker._replace(does="checked")
        if self._applies(worker, row, SUBMITTING) and not row.late:
            after = with_row(world, worker.order, row._replace(lease=True, due=True))
            return "Tasks.may_post: yes", True, with_submitter(after, place, ready)
        if self.without == "the look at the lease":
            return "the POST is not asked about", True, with_submitter(world, place, ready)
        return "Tasks.may_post: no", True, self._not_sent(world, place, worker)

    def _not_sent(self, world: World, place: int, worker: Worker) -> World:
        """Ends.not_sent: past its deadline, or somebody moved the row."""
        if worker.age == 0:
            return self._fail(world, place, worker)
        return self._settled(world, place, worker)

    def _settled(self, world: World, place: int, worker: Worker) -> World:
        """services.submitter.ends.settled: the row was cancelled, and nothing of it is at the provider."""
        row = world.rows[worker.order]
        alone = worker.age == 1 or self.without == "only the last owner settles"
        if row.status == CANCELLED and row.attempt == worker.attempt and alone:
            return with_submitter(world, place, worker._replace(does="pay", age=0, flag=False))
        return with_submitter(world, place, IDLE)

    def _fail(self, world: World, place: int, worker: Worker) -> World:
        """Ends.fail"""
        row = world.rows[worker.order]
        if not self._applies(worker, row, SUBMITTING):
            return self._settled(world, place, worker)
        after = with_move(world, worker.order, self._ended(row, FAILED))
        return with_submitter(after, place, worker._replace(does="pay", age=0, flag=False))

    def _give_back(self, world: World, place: int, worker: Worker) -> World:
        """Start._give_back: provably nothing was created, the attempt is not charged."""
        row, world = world.rows[worker.order], world._replace(busy=world.busy - 1)
        if not self._applies(worker, row, SUBMITTING):
            return self._settled(world, place, worker)
        return with_submitter(with_move(world, worker.order, pending_again(row)), place, IDLE)

    def _record(self, world: World, place: int, worker: Worker) -> Step[World]:
        """Start._record, else Start._undo."""
        order, attempt, row = worker.order, worker.attempt, world.rows[worker.order]
        if self._applies(worker, row, SUBMITTING):
            processing = row._replace(status=PROCESSING, lease=False, due=True)
            return "Tasks.record", True, with_submitter(with_move(world, order, processing), place, IDLE)
        if row.attempt == attempt and row.status in {SUBMITTING, PROCESSING, COMPLETED}:
            return "Start._record: the new owner has the same job", True, with_submitter(world, place, IDLE)
        undone = with_job(world, order, attempt, ENDED) if row.jobs[attempt - 1] == LIVE else world
        return "Start._undo: cancels the job", True, self._settled(undone, place, worker)

    # --- pollers --------------------------------------------------------------------------------------------------

    def _look(self, world: World, place: int, order: int, row: Row) -> Iterator[Step[World]]:
        """Check._look_at: reads the row and asks the server about it. Check._walk goes on from its status."""

        def on(does: str, after: World = world, *, flag: bool = False) -> World:
            return with_poller(after, place, Worker(does, order, 0, row.attempt, flag))

        if row.status == PENDING and row.late and row.due:
            yield "Schedule._end_overdue", True, on("fail")
        if not row.check:
            return
        if row.status in FINAL and row.due:
            if row.owed:
                gone = with_job(world, order, row.attempt, ENDED) if row.job == LIVE else world
                yield "Cancels.is_settled: yes", True, on("clear" if row.told else "pay", gone)
                if not row.told:
                    yield "Cancels.is_settled: not yet", False, on("pay", flag=True)
            else:
                yield "Check._pay", True, on("pay")
        elif row.status == SUBMITTING and row.late and not row.lease:
            yield "Check._look: past its deadline", True, on("fail")
        elif row.status == PROCESSING:
            match row.job:
                case "done":
                    yield "Check._keep: fetched and stored", True, on("keep")
                    yield "Check._keep: a broken picture", False, on("again")
                case "ended" | "gone":
                    yield f"Check._decide: {row.job}", True, on("again")
                case _ if row.late:
                    yield "Check._decide: past its deadline", True, on("fail")
                case _:
                    gone = with_job(world, order, row.attempt, ENDED)
                    yield "Check._limit: cancelled after its longest run", False, on("again", gone)

    def _check(self, world: World, place: int, worker: Worker) -> Iterator[Step[World]]:
        """The moves of Check, each a compare-and-set, and the follow-up. flag -- a cancel is still owed"""
        order = worker.order
        row = world.rows[order]

        def ended(status: str, *, owed: bool = False) -> World:
            if row.status in FINAL | {NONE} or not self._applies(worker, row, row.status):
                return with_poller(world, place, IDLE)  # Check._walk_again: the message is still there
            if status == FAILED and worker.does == "again" and row.charged + 1 < self.tries and not row.late:
                again = pending_again(row)._replace(charged=row.charged + 1)
                return with_poller(with_move(world, order, again), place, IDLE)
            after = with_move(world, order, self._ended(row, status, owed=owed))
            return with_poller(after, place, IDLE if owed else worker._replace(does="pay", age=0))

        match worker.does:
            case "keep":
                yield "Tasks.move: completed", True, ended(COMPLETED)
            case "again":
                yield "after_failure: pending or failed", True, ended(FAILED)
            case "fail":
                yield "Tasks.move: failed", True, ended(FAILED, owed=row.status in {SUBMITTING, PROCESSING})
            case "pay":
                after = with_poller(self._said(world, worker), place, worker._replace(does="clear"))
                yield "Settling: the last word is confirmed", True, after
            case "clear":
                yield "Tasks.clear_due", True, with_poller(self._clear(world, worker), place, IDLE)

    # --- what submitters and pollers do alike ---------------------------------------------------------------------

    def _applies(self, worker: Worker, row: Row, status: str) -> bool:
        """The compare-and-set of a move: status and version are as they were read."""
        return row.status == status and (worker.age == 0 or self.without == "the version")

    def _ended(self, row: Row, status: str, *, owed: bool = False) -> Row:
        """_MOVE to a final status: somebody must say so, and perhaps cancel a job."""
        due = self.without != "due_at on final rows" or owed
        return row._replace(
            status=status, due=due, owed=owed, told=False, said=False, lease=False, is_newer=status == FAILED
        )

    def _said(self, world: World, worker: Worker) -> World:
        """The event has left, and the letter of a failed row; of an older version it says nothing about this one."""
        row = world.rows[worker.order]
        if worker.age:
            return world
        return with_row(world, worker.order, row._replace(said=True, buried=row.buried or row.status == FAILED))

    def _clear(self, world: World, worker: Worker) -> World:
        """_CLEAR_DUE"""
        row = world.rows[worker.order]
        applies = worker.age == 0 or self.without == "the version"
        if not applies or row.status not in FINAL or not row.due:
            return world
        owed = row.owed and worker.flag
        return with_row(world, worker.order, row._replace(told=True, owed=owed, due=owed))
