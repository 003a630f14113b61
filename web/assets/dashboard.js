// What only the browser knows: the reader's own clock, and whether the page is still connected.
"use strict";
(() => {
  const two = (n) => String(n).padStart(2, "0");
  const span = (s) => {
    s = Math.max(0, Math.floor(s));
    if (s < 60) return `${s} s`;
    if (s < 3600) return `${Math.floor(s / 60)} min ${two(s % 60)} s`;
    if (s < 86400) return `${Math.floor(s / 3600)} h ${two(Math.floor((s % 3600) / 60))} min`;
    return `${Math.floor(s / 86400)} d ${Math.floor((s % 86400) / 3600)} h`;
  };
  const ago = (s) => {
    if (s < 5) return "just now";
    if (s < 60) return `${Math.floor(s)} s ago`;
    if (s < 3600) return `${Math.floor(s / 60)} min ago`;
    if (s < 86400) return `${Math.floor(s / 3600)} h ago`;
    return `${Math.floor(s / 86400)} d ago`;
  };
  const say = (element, text) => { if (element.textContent !== text) element.textContent = text; };
  const clocks = () => {
    const now = Date.now();
    for (const e of document.querySelectorAll("[data-since]")) say(e, span((now - Date.parse(e.dataset.since)) / 1000));
    for (const e of document.querySelectorAll("[data-ago]")) {
      const then = new Date(e.dateTime);
      say(e, ago((now - then) / 1000));
      if (!e.title) e.title = then.toLocaleString();
    }
    for (const e of document.querySelectorAll("[data-clock]:not([title])")) {
      const then = new Date(e.dateTime);
      say(e, `${two(then.getHours())}:${two(then.getMinutes())}:${two(then.getSeconds())}`);
      e.title = then.toLocaleString();
    }
    for (const e of document.querySelectorAll("[data-moment]")) say(e, new Date(e.dateTime).toLocaleString([], { dateStyle: "medium", timeStyle: "short" }));
  };
  clocks();
  setInterval(clocks, 1000);
  document.addEventListener("htmx:after:swap", clocks);

  const mark = document.getElementById("connection");
  const show = (state, text) => { if (mark) { mark.dataset.state = state; say(mark, text); } };
  document.addEventListener("htmx:sse:after:connection", () => show("live", "Live"));
  document.addEventListener("htmx:sse:error", (event) => {
    if (event.detail.status === 401) location.assign(`/sign-in?next=${encodeURIComponent(location.pathname + location.search)}`);
    show("lost", "Reconnecting");
  });
  document.addEventListener("htmx:sse:close", (event) => {
    if (event.detail.reason === "message") show("done", "Final");
  });

  // Who reads the end keeps seeing the end.
  const timeline = document.getElementById("timeline");
  if (timeline) {
    let following = false;
    addEventListener("scroll", () => {
      const page = document.documentElement;
      following = scrollY > 0 && page.scrollHeight - scrollY - innerHeight < 160;
    }, { passive: true });
    document.addEventListener("htmx:after:swap", () => {
      if (following) scrollTo({ top: document.documentElement.scrollHeight });
    });
  }
})();
