"""RabbitMQ and PostgreSQL of our own on free loopback ports, without Docker.

Standard library only: it runs before any package is there.

On the command line:

    python -m deploy.local install          find or install both servers, start nothing; --with-prometheus for tests
    python -m deploy.local up               find or install both servers, start them, write .local/env
    python -m deploy.local status [--json]  what runs and where; exit status 3 unless both are up
    python -m deploy.local env              `export DARKROOM_...=` lines for a shell
    python -m deploy.local down [--wipe]    stop them by pid; the data stays unless --wipe

In code:

    stack = Stack(Path("somewhere"))
    stack.up()                              safe to call twice: what runs is kept
    stack.amqp_url, stack.database_url, stack.prometheus_port
    stack.create_database("shop")           its URL
    stack.broker.kill(); stack.broker.start()                   a crash; same ports, same data
    stack.database.stop(immediate=True); stack.database.start()
    stack.broker.queues(), stack.broker.ctl("status")           what rabbitmqctl says
    stack.down(wipe=True)
"""

from deploy.local.broker import Broker
from deploy.local.database import Database
from deploy.local.problem import StackProblem
from deploy.local.stack import Stack

__all__ = ["Broker", "Database", "Stack", "StackProblem"]
