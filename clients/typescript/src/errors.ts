/** What can go wrong, as types that a caller can tell apart. */

import type { components } from "./generated.js";

type Schemas = components["schemas"];

/** The stable codes of refusals. `docs/errors/` has a page for each. */
export type ProblemCode = Schemas["ProblemCode"];
/** The stable codes of tasks that failed. */
export type FailureCode = Schemas["FailureCode"];
/** Why a task failed. */
export type Failure = Schemas["FailureView"];

/** The server said no. `code` says why; `detail` says what to do next. */
export class OrchestraError extends Error {
  override readonly name = "OrchestraError";
  /** The HTTP status. */
  readonly status: number;
  /** The stable code; `unknown` where something before the server answered in its place. */
  readonly code: ProblemCode | "unknown";
  /** What happened, and what to do next. */
  readonly detail: string;
  /** The fields that do not do, each with its JSON pointer. */
  readonly errors: readonly Schemas["Field"][];
  /** The cap that is met, with the code `budget-exceeded`. */
  readonly budget: Schemas["Exhausted"] | null;

  constructor(status: number, problem: Partial<Schemas["Problem"]>) {
    const fields = (problem.errors ?? []).map((field) => `${field.pointer || "/"}: ${field.detail}`);
    super([`${problem.code ?? "unknown"} (${status}): ${problem.detail ?? "no explanation"}`, ...fields].join("\n  "));
    this.status = status;
    this.code = problem.code ?? "unknown";
    this.detail = problem.detail ?? "";
    this.errors = problem.errors ?? [];
    this.budget = problem.budget ?? null;
  }
}

/** A task that was waited for did not succeed. */
export class TaskFailed extends Error {
  override readonly name = "TaskFailed";
  /** The task as it stands. */
  readonly task: Schemas["Task"];
  /** Why, in its full shape; `null` for a task that was cancelled. */
  readonly failure: Failure | null;
  /** The failure's code; `cancelled` for a task that was cancelled. */
  readonly code: FailureCode;
  /** Whether doing the same again may succeed. */
  readonly retryable: boolean;

  constructor(task: Schemas["Task"]) {
    const failure = task.failure ?? null;
    const code: FailureCode = failure?.code ?? "cancelled";
    super(`${task.id}: ${code}: ${failure?.message ?? task.reason}${failure ? `\n  ${failure.hint}` : ""}`);
    this.task = task;
    this.failure = failure;
    this.code = code;
    this.retryable = failure?.retryable ?? false;
  }
}

/** The server could not be reached, however often it was tried. `cause` is the last reason. */
export class ConnectionFailed extends Error {
  override readonly name = "ConnectionFailed";
}
