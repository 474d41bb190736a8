// Keeps the parts marked data-live as the server has them now, on pages that cost nothing to ask for (class live).
// Without this script a page is read all the same.
"use strict";
const EVERY = 2500;

async function refresh() {
  if (document.hidden) return;
  const answer = await fetch(location.href, { headers: { accept: "text/html" } });
  if (!answer.ok) throw new Error(answer.status);
  if (answer.redirected) return location.assign(answer.url); // the session has ended
  const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
  for (const old of document.querySelectorAll("[data-live]")) {
    const now = fresh.getElementById(old.id);
    // what somebody is at, by keyboard or by a selection, stays as it is
    if (!now || now.innerHTML === old.innerHTML || old.contains(document.activeElement)) continue;
    if (!getSelection().isCollapsed && old.contains(getSelection().anchorNode)) continue;
    old.replaceWith(document.adoptNode(now));
  }
}

async function loop() {
  try {
    await refresh();
    document.body.classList.remove("away");
  } catch {
    document.body.classList.add("away");
  }
  setTimeout(loop, EVERY);
}
if (document.body.classList.contains("live")) setTimeout(loop, EVERY);
