"""Rows of the stores that no API writes; runs inside an old release's image."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

from tests.migrate.inside import call, get, is_bridge, repository


async def store_rows(made: dict[str, Any], copies: int) -> None:
    """What no API writes: agentensor's checkpoints; a thread with every kind of item."""
    main, types = made["workflows"]["main"], "chatkit.types"
    scoped: dict[str, Any] = {"workspace_id": made["workspace"]} if is_bridge() else {}
    made["agentensor"] = []
    for score in (0.5, 0.9, 0.7):  # the store keeps one best
        recorded = await call("orcheo_backend.app.dependencies", "get_checkpoint_store").record_checkpoint(
            workflow_id=main,
            runnable_config={"t": score},
            metrics={"score": score},
            metadata={"m": [1]},
            artifact_url=f"file:///{score}",
            is_best=score > 0.6,
            **scoped,
        )
        made["agentensor"].append(recorded.id)
    chat = call("orcheo_backend.app.chatkit_runtime", "get_chatkit_server").store
    context = {"workflow_id": main, **scoped}
    now = datetime.now(UTC)
    thread = call(
        types,
        "ThreadMetadata",
        id=f"thr_{made['label']}",
        title="About it",
        created_at=now,
        metadata={"workflow_id": main},
    )
    await chat.save_thread(thread, context)
    made["threads"].append(thread.id)
    items: list[tuple[str, dict[str, Any]]] = [
        ("HiddenContextItem", {"content": {"seen": [1, 2]}}),
        (
            "ClientToolCallItem",
            {"call_id": "c", "name": "tool", "arguments": {"a": 1}, "status": "completed", "output": [1]},
        ),
    ]
    said = {"attachments": [], "inference_options": call(types, "InferenceOptions"), "quoted_text": "as you said"}
    for number in range(copies):
        text = call(types, "UserMessageTextContent", text=f"message {number}")
        items.append(("UserMessageItem", {"content": [text], **said}))
    for number, (kind, values) in enumerate(items):
        named = {
            "id": f"msg_{made['label']}_{number}",
            "thread_id": thread.id,
            "created_at": now + timedelta(seconds=number),
        }
        await chat.add_thread_item(thread.id, call(types, kind, **named, **values), context)


async def bridge_rows(made: dict[str, Any], copies: int) -> None:
    """Listeners, plugins, LangGraph's store, and a remediation beside the one that the failed run left."""
    main, label = uuid.UUID(made["workflows"]["main"]), made["label"]
    version = (await repository().list_versions(main))[-1]
    bot = {
        "node_name": "bot",
        "platform": "telegram",
        "token": f"t-{label}",
        "bot_identity_key": f"telegram:{label}",
    }
    await repository().sync_listener_subscriptions_for_version(
        main, version.id, {"index": {"listeners": [bot]}}, actor="seed"
    )
    found = (await repository().list_listener_subscriptions(workflow_id=main))[0]
    cursor = call(
        "orcheo.listeners", "ListenerCursor", subscription_id=found.id, telegram_offset=2**40, metadata={"m": 1}
    )
    await repository().save_listener_cursor(cursor)
    message = {
        "platform": "telegram",
        "event_type": "message",
        "dedupe_key": f"d-{label}",
        "bot_identity": "telegram:x",
    }
    event = call("orcheo.listeners", "ListenerDispatchPayload", **message, raw_event={"update_id": 1})
    run = await repository().dispatch_listener_event(found.id, event)
    made["runs"]["listener"] = [str(run.id)]
    made["listeners"] = [str(found.id)]
    states = get("orcheo.listeners", "ListenerSubscriptionStatus")
    await repository().update_listener_subscription_status(
        found.id, status=states.PAUSED, actor="seed", last_error="slow"
    )
    plugins = call("orcheo_backend.app.dependencies", "get_plugin_installation_store")
    for name, enabled in (("orcheo-plugin-x", True), ("orcheo-plugin-y", False)):
        await plugins.set_plugin_enabled(name, workspace_id=made["workspace"], enabled=enabled)
    candidate = await repository().create_remediation_candidate(
        workflow_id=main,
        workflow_version_id=version.id,
        run_id=uuid.UUID(made["runs"]["failed"][0]),
        fingerprint=f"f-{label}",
        version_checksum="c",
        graph_format=None,
        context={"error": "e"},
    )
    await repository().dismiss_remediation_candidate(candidate.id, actor="me", reason="known")
    made["remediations"] = [str(each.id) for each in await repository().list_remediation_candidates()]
    async with call("orcheo.persistence", "create_graph_store", call("orcheo.config", "get_settings")) as store:
        for number in range(copies):
            await store.aput(("memories", label), f"fact-{number}", {"text": f"fact {number}", "vector": [0.1, 1e-7]})
        await store.aput(("memories", made["label"]), "until tomorrow", {"text": "passes"}, ttl=24 * 60)
        await store.aput((made["workspace"], "agent_chat_history", label), "turn", {"text": "of the agent"})
