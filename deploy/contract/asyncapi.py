"""The AsyncAPI 3.0 document: which messages cross which exchange, seen from darkroom. Pure."""

from typing import Any, Final

from deploy.contract.examples import TRACEPARENT, example
from deploy.contract.schemas import BEYOND_THE_SCHEMA, DRAFT, EVENT_MEANING, EVENT_STATUS
from shared.broker.topology import EVENTS_EXCHANGE, ORDERS_EXCHANGE, topology
from shared.domain.messages import ORDER_PLACED

_AMQP_BINDING: Final = "0.3.0"
_SCHEMA_FORMAT: Final = "application/schema+json;version=draft-2020-12"

_TRACEPARENT: Final = {
    "type": "string",
    "pattern": "^00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$",
    "description": "W3C Trace Context; the trace id of an order comes back with all its events",
}

_ABOUT: Final = """\
The document is written from darkroom's side: darkroom receives orders and sends events.

The promise is additive. Fields, events and reasons may be added to version 1; none is removed, renamed or given
another meaning. Ignore what you do not know in an event. A change that would break this becomes version 2 of that
message type beside version 1. The messages task.submit.v1, task.check.v1 and dead.letter.v1 and all queues belong to
darkroom alone and may change with any release."""


def document() -> dict[str, Any]:
    """The whole document, as a JSON value."""
    events = [f"order.{kind}.v1" for kind in EVENT_STATUS]
    return {
        "asyncapi": "3.0.0",
        "info": {"title": "darkroom", "version": "1.0.0", "description": _ABOUT},
        "defaultContentType": "application/json",
        "channels": {
            "orders": _channel(ORDERS_EXCHANGE, "order.placed", [ORDER_PLACED])
            | {"description": "Orders. Publish persistent, mandatory and with confirms; declare nothing here."},
            "events": _channel(EVENTS_EXCHANGE, "order.{event}", events)
            | {
                "parameters": {"event": {"enum": list(EVENT_STATUS), "description": "what became of the order"}},
                "description": "What became of orders. Bind a durable queue of your own, before the first order.",
            },
        },
        "operations": {
            "receiveOrder": _operation("receive", "orders", [ORDER_PLACED], mandatory=True)
            | {"summary": "An upstream system asks for pictures."},
            "sendEvent": _operation("send", "events", events, mandatory=False)
            | {"summary": "darkroom says what became of an order, at least once per final status."},
        },
        "components": {"messages": {name: _message(name) for name in [ORDER_PLACED, *events]}},
    }


def _channel(exchange: str, address: str, messages: list[str]) -> dict[str, Any]:
    type_ = next(each.type for each in topology([]).exchanges if each.name == exchange)
    return {
        "address": address,
        "messages": {name: {"$ref": f"#/components/messages/{name}"} for name in messages},
        "bindings": {
            "amqp": {
                "is": "routingKey",
                "exchange": {"name": exchange, "type": type_, "durable": True, "autoDelete": False},
                "bindingVersion": _AMQP_BINDING,
            }
        },
    }


def _operation(action: str, channel: str, messages: list[str], *, mandatory: bool) -> dict[str, Any]:
    return {
        "action": action,
        "channel": {"$ref": f"#/channels/{channel}"},
        "messages": [{"$ref": f"#/channels/{channel}/messages/{name}"} for name in messages],
        "bindings": {"amqp": {"deliveryMode": 2, "mandatory": mandatory, "ack": True, "bindingVersion": _AMQP_BINDING}},
    }


def _message(name: str) -> dict[str, Any]:
    is_order = name == ORDER_PLACED
    return {
        "name": name,
        "title": name,
        "summary": BEYOND_THE_SCHEMA if is_order else EVENT_MEANING[name.split(".")[1]],
        "contentType": "application/json",
        "correlationId": {"location": "$message.payload#/idempotency_key"},
        "headers": {
            "type": "object",
            "properties": {"traceparent": _TRACEPARENT},
            "required": [] if is_order else ["traceparent"],
        },
        "x-amqp-properties": _properties(name, is_order=is_order),
        "payload": {"schemaFormat": _SCHEMA_FORMAT, "schema": {"$ref": f"./{name}.json"}},
        "bindings": {"amqp": {"messageType": name, "bindingVersion": _AMQP_BINDING}},
        "examples": [{"name": name, "headers": {"traceparent": TRACEPARENT}, "payload": example(name)}],
    }


def _properties(name: str, *, is_order: bool) -> dict[str, Any]:
    """JSON Schema of the AMQP properties, which AsyncAPI keeps out of `headers` as protocol headers."""
    message_id: dict[str, Any] = {"type": "string", "description": "yours; darkroom knows an order by its key"}
    correlation_id = "yours; darkroom does not read it"
    if not is_order:
        message_id = {"type": "string", "format": "uuid", "description": "the event_id: the same in every copy"}
        correlation_id = "the idempotency key of the task, cut to 255 bytes"
    return {
        "$schema": DRAFT,
        "type": "object",
        "properties": {
            "type": {"const": name},
            "content_type": {"const": "application/json"},
            "delivery_mode": {"const": 2},
            "message_id": message_id,
            "correlation_id": {"type": "string", "description": correlation_id},
        },
        "required": ["type"] if is_order else ["type", "content_type", "delivery_mode", "message_id", "correlation_id"],
    }
