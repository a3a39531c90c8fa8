"""Text in user messages that no user wrote: what agents and editors put there, in tags of their own.

Without it, the prompts of an agent all look alike to a scorer. One list for all; a proxy may name more tags.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection
from itertools import islice

from p2l_plugins.errors import PromptError
from p2l_plugins.prompts import Turns

#: Tags whose blocks are left out: reminders, rules, the state of an editor or a shell, attached files.
INJECTED = frozenset(
    """
    additional_context additional_data additional_instructions agent_instructions agents_md ambient_context
    attached_files attachments available_skills background_context bash-input bash-stderr bash-stdout claude_md
    claude_background_info codebase_context command-args command-message command-name context contexts
    conversation_context cursor_rules current_file custom_instructions editor_context editorcontext
    editor_state env environment environment_context environment_details environmentdetails environment_info
    file_contents file_context fileattachments files git_context git_status gitstatus guidelines hook_output
    important_rules instructions linter_errors local-command-caveat local-command-stderr local-command-stdout
    manually_attached_files memories memory notes open_and_recently_viewed_files open_files persisted-output
    post-tool-use-hook project_context project_instructions project_layout project_rules project-context
    project-instructions project-rules reminder reminders reminderinstructions repo_context repo_map
    repository_context rules selected_code session_context skills_instructions system system-instructions
    system-notification system-prompt system-reminder system_context system_info system_instructions
    system_notification system_prompt system_reminder terminal_output todo_list tool_output user-prompt-submit-hook
    user_info user_instructions user_memories user_rules workspace_context workspace_info workspaceinfo
    """.split()
)

#: Tags of one turn that are looked at: a request waits for it.
MOST_TAGS = 10_000

#: Tags around what the user asks: only the tags go.
ASKS = frozenset("ask query question request task user_message user_query user_request userrequest".split())


def without_injected(turns: Turns, more: Collection[str] = (), keep: bool = True) -> Turns:
    """The user's turns without injected blocks, and each text once.

    Args:
        more: names of further tags.
        keep: gives the turns as they were where nothing is left, for a user may ask about such a block.

    Raises:
        PromptError: nothing is left, where they are not to be kept.
    """
    if not any("<" in turn for turn in turns) and len(turns) == len(set(turns)):
        return turns
    names = INJECTED.union(name.lower() for name in more) if more else INJECTED
    found: dict[str, None] = {}
    for turn in turns:
        text = _stripped(turn, names) if "<" in turn else turn
        if text.strip():
            found.setdefault(text)
    if found:
        return tuple(found)
    if keep:
        return tuple(dict.fromkeys(turns))
    raise PromptError("the prompt holds nothing but injected text")


def _stripped(turn: str, names: Collection[str]) -> str:
    """A turn without its blocks, in one pass over its first `MOST_TAGS`; a tag that is never closed is text."""
    opened: dict[str, list[int]] = defaultdict(list)
    blocks = []
    for tag in islice(_TAG.finditer(turn), MOST_TAGS):
        name = tag[2].lower()
        if name not in names:
            continue
        if not tag[1]:
            opened[name].append(tag.start())
        elif opened[name]:
            blocks.append((opened[name].pop(), tag.end()))
    parts, end = [], 0
    for start, stop in sorted(blocks):
        if start >= end:
            parts.append(turn[end:start])
        end = max(end, stop)
    text = "\n".join(part.strip() for part in [*parts, turn[end:]] if part.strip()) if blocks else turn
    asked = _ASK_BEGINS.match(text := text.strip())
    text = text[asked.end() :] if asked else text
    ends = _ASK_ENDS.search(text, max(0, len(text) - _LONGEST_TAG))
    return text[: ends.start()].strip() if ends else text


#: Any tag. Read in one pass, since a request waits for it.
_TAG = re.compile(r"<(/?)([a-z][\w-]{0,63})(?:\s[^<>]*)?>", re.IGNORECASE)

_LONGEST_TAG = 64
_ASK_BEGINS = re.compile(rf"<({'|'.join(sorted(ASKS))})(?:\s[^<>]*)?>\s*", re.IGNORECASE)
_ASK_ENDS = re.compile(rf"</({'|'.join(sorted(ASKS))})\s*>$", re.IGNORECASE)
