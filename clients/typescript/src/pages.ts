/** Lists that come in pages, read as one. */

import type { Call, Http } from "./http.js";

/** A page of a list. */
export interface Page<T> {
  readonly data: readonly T[];
  /** Where the next page begins; `null` where there is none. */
  readonly nextCursor?: string | null;
}

/** A list, newest first. `for await` reads it to its end; `page` reads one page of it. */
export class Pages<T> implements AsyncIterable<T> {
  readonly #http: Http;
  readonly #call: Call;

  constructor(http: Http, call: Call) {
    this.#http = http;
    this.#call = call;
  }

  /** One page: the first, or the one that begins here. */
  page(cursor?: string): Promise<Page<T>> {
    const query = cursor === undefined ? this.#call.query : { ...this.#call.query, cursor };
    return this.#http.json<Page<T>>({ ...this.#call, query });
  }

  async *[Symbol.asyncIterator](): AsyncGenerator<T, void> {
    let page = await this.page();
    for (;;) {
      yield* page.data;
      if (page.nextCursor == null) return;
      page = await this.page(page.nextCursor);
    }
  }
}
