"""When to lengthen the context. The fixed rule: stage i lasts `stage_steps[i]` steps."""


def stage_at(step: int, stage_steps: tuple[int, ...]) -> int:
    """The stage (from 0) that step `step` (from 1) belongs to; past the end, the last one."""
    end = 0
    for stage, steps in enumerate(stage_steps):
        end += steps
        if step <= end:
            return stage
    return len(stage_steps) - 1
