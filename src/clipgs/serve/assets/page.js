// The page of `clipgs serve`: lists of objects, one object, failures, and commands to copy. All texts of the data are
// set as text, never as markup. Addresses are relative, so that a token in the page's own address is kept.
"use strict";
(() => {
  const $ = (id) => document.getElementById(id);
  const COUNT = 48; // objects of one request
  const WORDS_PAUSE = 250; // milliseconds after a key, before words are searched
  const FILTERS = ["category", "license", "split", "psnr_min", "psnr_max", "sort", "stage"];
  const KEPT = ["tab", "q", "by", "like", ...FILTERS, "uid"]; // in the address
  const MOVES = { ArrowLeft: -1, ArrowRight: 1 };

  let about = null;
  let state = {}; // of KEPT
  let picture = null; // the file that is searched by
  let found = { objects: [], total: 0 };
  let asking = null; // AbortController of the list
  let splat = null; // the viewer
  const marked = new Map(); // uid to what it is

  const element = (name, properties = {}, ...children) => {
    const made = Object.assign(document.createElement(name), properties);
    made.append(...children.filter((child) => child !== null && child !== ""));
    return made;
  };
  const ask = async (address, options = {}) => {
    const response = await fetch(address, options);
    if (!response.ok) throw new Error(await response.text());
    return response;
  };
  const number = (value) => value.toLocaleString("en");
  const counted = (count, one) => `${number(count)} ${one}${count === 1 ? "" : "s"}`;
  const psnr = (value) => (value === null || value === undefined ? "" : `${value.toFixed(1)}\u00a0dB`);
  const failures = () => state.tab === "failures";

  // --- the state, which the address keeps ----------------------------------------------------------------------------

  const readAddress = () => {
    const kept = new URLSearchParams(location.hash.slice(1));
    state = Object.fromEntries(KEPT.map((name) => [name, kept.get(name) || ""]));
    if (!state.by) state.by = about.near && about.reader !== "none" ? "meaning" : "words";
    if (!about.near) state.by = "words";
  };
  const writeAddress = (push) => {
    const kept = new URLSearchParams(KEPT.filter((name) => state[name]).map((name) => [name, state[name]]));
    history[push ? "pushState" : "replaceState"](null, "", `#${kept}`);
  };
  const showControls = () => {
    $("q").value = state.q;
    $("by").value = state.by;
    for (const name of FILTERS) $(name).value = state[name];
    for (const tab of ["objects", "failures"]) {
      $(`tab-${tab}`).setAttribute("aria-pressed", String(failures() === (tab === "failures")));
    }
    for (const one of document.querySelectorAll("[data-tab]")) one.hidden = failures() !== (one.dataset.tab === "failures");
    $("by").hidden = failures();
    $("picture-label").hidden = failures() || !about.near;
    $("q").placeholder = failures() ? "words of a reason or a file" : state.by === "words" ? "words of a category, caption or file" : "what it looks like";
    const other = !failures() && (picture || state.like);
    $("asked").hidden = !other;
    $("q").hidden = Boolean(other);
    $("asked-picture").hidden = !picture;
    if (other) $("asked-text").textContent = picture ? picture.name || "a picture" : `like ${state.like}`;
    const ranked = Boolean(other) || (state.by === "meaning" && Boolean(state.q));
    $("sort").disabled = ranked;
    $("sort").options[0].textContent = ranked ? "nearest first" : "as packed";
    if (ranked) $("sort").value = "";
  };
  const change = (changes, { push = true, keep = false } = {}) => {
    Object.assign(state, changes);
    if (!keep) picture = null;
    if (!$("detail").open) state.uid = ""; // one that was still to open belongs to the list before
    writeAddress(push);
    showControls();
    return list();
  };

  // --- lists -----------------------------------------------------------------------------------------------------------

  const parameters = (offset) => {
    const names = failures() ? ["q", "stage"] : ["q", "by", "like", "category", "license", "split", "psnr_min", "psnr_max", "sort"];
    const chosen = new URLSearchParams(names.filter((name) => state[name]).map((name) => [name, state[name]]));
    if (picture || state.like) chosen.delete("q");
    chosen.set("offset", offset);
    chosen.set("count", COUNT);
    return chosen;
  };
  const list = async (offset = 0) => {
    if (asking) asking.abort();
    const mine = (asking = new AbortController());
    const waits = about.reader === "loading" && !failures() && (picture || (state.q && state.by === "meaning" && !state.like));
    $("status").textContent = waits ? "The model that reads queries is loading; the first search waits for it." : "Searching.";
    const address = `api/${failures() ? "failures" : "search"}?${parameters(offset)}`;
    try {
      const options = picture ? { method: "POST", body: picture, signal: mine.signal } : { signal: mine.signal };
      const started = performance.now();
      const answer = await (await ask(address, options)).json();
      if (waits) about.reader = "ready";
      const objects = offset ? [...found.objects, ...answer.objects] : answer.objects;
      found = { ...answer, objects };
      if (!offset) $("list").replaceChildren();
      $("list").append(...answer.objects.map(failures() ? failedCard : card));
      if (failures()) fill("stage", answer.stages, "all");
      const seconds = ((performance.now() - started) / 1000).toFixed(2);
      $("status").textContent = `${counted(found.total, failures() ? "failed object" : "object")}, ${seconds} s`;
      if (answer.changed) notice("The output has changed since the server started: start it again to see what is new.");
    } catch (error) {
      if (error.name === "AbortError") return;
      found = { objects: [], total: 0 };
      $("list").replaceChildren();
      $("status").textContent = error.message;
    } finally {
      if (asking === mine) {
        asking = null;
        $("more").hidden = found.objects.length >= found.total;
        position();
      }
    }
  };
  const more = () => (asking || found.objects.length >= found.total ? null : list(found.objects.length));

  const shown = (address, text) => element("img", { className: "picture", loading: "lazy", decoding: "async", src: address, alt: text });
  const marker = (uid, text) => {
    const box = element("input", { type: "checkbox", checked: marked.has(uid), title: "Mark to exclude" });
    box.setAttribute("aria-label", `Mark ${text} to exclude`);
    box.dataset.mark = uid;
    box.addEventListener("change", () => mark(uid, box.checked));
    return box;
  };
  const card = (row) => {
    const score = row.score === undefined ? "" : row.score.toFixed(3);
    const small = [score, row.category, row.split, psnr(row.psnr)].filter(Boolean).join(" · ");
    const open = element("button", { type: "button", className: "card" }, shown(`render/${row.uid}`, row.caption),
      element("span", { className: "text" }, element("span", { className: "caption", textContent: row.caption }),
        element("span", { className: "small", textContent: small })));
    open.dataset.uid = row.uid;
    open.addEventListener("click", () => openDetail(row.uid));
    return element("li", {}, open, marker(row.uid, row.caption));
  };
  const failedCard = (row) => {
    const seen = row.picture ? shown(`failed/${row.uid}`, "") : element("span", { className: "picture none", textContent: "no picture" });
    const still = element("div", { className: "card button-like", tabIndex: 0 }, seen,
      element("span", { className: "text" }, element("span", { textContent: row.error || "no reason is recorded" }),
        element("span", { className: "small", textContent: [row.stage, row.file, row.uid].filter(Boolean).join(" · ") })));
    still.dataset.uid = row.uid;
    return element("li", {}, still, marker(row.uid, row.file || row.uid));
  };

  // A splat under the mouse turns in its card, once the mouse rests there. One canvas serves all cards.
  const HOVER_PAUSE = 300; // milliseconds
  let turning = null; // the canvas, its viewer, and the uid that is asked for
  const turn = async (card) => {
    if (!turning) {
      const place = element("span", { className: "turning" }, element("canvas"));
      place.dataset.pixels = about.pixels;
      place.dataset.distance = about.distance;
      turning = { place, splat: splatViewer(place), uid: "" };
    }
    if (turning.splat.still) return;
    const uid = (turning.uid = card.dataset.uid);
    turning.place.classList.remove("live");
    try {
      const bytes = new Uint8Array(await (await ask(`splat/${uid}`)).arrayBuffer());
      if (turning.uid !== uid) return;
      card.parentElement.append(turning.place);
      turning.splat.show(bytes);
    } catch { // its picture stays
    }
  };
  const listenToMouse = () => {
    const calm = window.matchMedia("(prefers-reduced-motion: reduce)");
    let rest = 0, over = null;
    const leave = () => {
      clearTimeout(rest);
      over = null;
      if (!turning) return;
      turning.uid = "";
      turning.place.remove();
    };
    $("list").addEventListener("pointerover", (event) => {
      const card = event.target.closest("button.card");
      if (event.pointerType !== "mouse" || calm.matches || card === over) return;
      leave();
      over = card;
      if (card) rest = setTimeout(() => turn(card), HOVER_PAUSE);
    });
    $("list").addEventListener("pointerleave", leave);
  };

  // --- one object ------------------------------------------------------------------------------------------------------

  const openDetail = (uid) => {
    state.uid = uid;
    writeAddress(!$("detail").open);
    return showDetail();
  };
  const closeDetail = () => {
    const uid = state.uid;
    if (!uid) return;
    state.uid = "";
    writeAddress(false);
    const back = document.querySelector(`#list [data-uid="${uid}"]`);
    if (back) back.focus({ preventScroll: false });
  };
  const position = () => {
    const place = found.objects.findIndex((row) => row.uid === state.uid);
    $("position").textContent = place < 0 ? "" : `${number(place + 1)} of ${number(found.total)}`;
    $("previous").disabled = place <= 0;
    $("next").disabled = place < 0 || place + 1 >= found.total;
  };
  const step = async (by) => {
    const place = found.objects.findIndex((row) => row.uid === state.uid);
    if (place < 0 || place + by < 0) return;
    if (place + by >= found.objects.length) await more();
    if (found.objects[place + by]) openDetail(found.objects[place + by].uid);
  };
  const fact = (name, value) => (value === null || value === undefined || value === "" ? [] : [element("dt", { textContent: name }), element("dd", {}, value)]);
  const score = (name, value) => (value === null || value === undefined ? [] : [element("div", {}, element("dt", { textContent: name }), element("dd", { textContent: value }))]);
  const link = (address) => (/^https?:\/\//i.test(address || "") ? element("a", { href: address, rel: "noreferrer noopener", target: "_blank", textContent: address }) : "");
  const strip = (id, title, count, address, text) => {
    $(`${id}-title`).textContent = title;
    $(id).parentElement.hidden = !count;
    $(id).replaceChildren(...Array.from({ length: count }, (_, i) => element("li", {},
      element("a", { href: address(i), target: "_blank", rel: "noopener" }, element("img", { loading: "lazy", decoding: "async", src: address(i), alt: `${text} ${i + 1}` })))));
  };
  const showDetail = async () => {
    const uid = state.uid;
    const viewer = $("viewer");
    let row;
    try {
      row = await (await ask(`api/object/${uid}`)).json();
    } catch (error) {
      state.uid = "";
      writeAddress(false);
      $("status").textContent = error.message;
      return;
    }
    if (state.uid !== uid) return;
    $("caption").textContent = row.caption;
    viewer.classList.remove("live");
    viewer.querySelector(".poster").src = `render/${uid}`;
    $("like").disabled = !row.near;
    $("ply").href = `ply/${uid}`;
    showMark();
    const listed = found.objects.find((one) => one.uid === uid);
    $("scores").replaceChildren(
      ...score("cosine with query", listed && listed.score !== undefined ? listed.score.toFixed(3) : null),
      ...score("PSNR", psnr(row.psnr) || null), ...score("PSNR of object", psnr(row.psnr_foreground) || null),
      ...score("SSIM", row.ssim === null ? null : row.ssim.toFixed(4)),
      ...score("alpha IoU", row.alpha_iou === null ? null : row.alpha_iou.toFixed(4)),
      ...score("Gaussians", row.gaussians === null ? null : number(row.gaussians)),
      ...score("caption score", row.caption_score === null ? null : row.caption_score.toFixed(3)));
    $("facts").replaceChildren(
      ...fact("Category", row.category), ...fact("Split", row.split), ...fact("Licence", row.license || "not stated"),
      ...fact("Credit", row.credit || "not stated"), ...fact("Page", link(row.page)), ...fact("File", row.file),
      ...fact("Source", row.source), ...fact("Uid", row.uid), ...fact("Shard", row.shard),
      ...fact("Caption from", row.caption_source), ...fact("Note", [row.caption_note, row.view_note, row.splat_note].filter(Boolean).join("; ")));
    strip("renders", `${counted(row.renders, "render")} of the splat`, row.renders, (i) => `render/${uid}/${i}`, "Render");
    if (row.mesh_views) strip("mesh", `${counted(row.mesh_views, "view")} of the mesh`, row.mesh_views, (i) => `mesh/${uid}/${i}`, "View");
    else strip("mesh", "The mesh", row.mesh_picture ? 1 : 0, () => `mesh/${uid}`, "Mesh");
    position();
    if (!$("detail").open) $("detail").showModal();
    $("detail").scrollTop = 0;
    try {
      splat ||= splatViewer(viewer);
      if (splat.still) {
        viewer.querySelector(".hint").textContent = "This browser has no WebGL 2: a picture instead of the splat.";
        return;
      }
      const bytes = new Uint8Array(await (await ask(`splat/${uid}`)).arrayBuffer());
      if (state.uid === uid) splat.show(bytes);
    } catch (error) {
      viewer.querySelector(".hint").textContent = `The splat cannot be shown: ${error.message}`;
    }
  };

  // --- commands to copy ------------------------------------------------------------------------------------------------

  const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;
  const mark = (uid, on) => {
    if (on) marked.set(uid, true);
    else marked.delete(uid);
    for (const box of document.querySelectorAll(`[data-mark="${uid}"]`)) box.checked = on;
    showMark();
    showTray();
  };
  const showMark = () => {
    $("mark").textContent = marked.has(state.uid) ? "Marked to exclude" : "Mark to exclude";
    $("mark").setAttribute("aria-pressed", String(marked.has(state.uid)));
  };
  const showTray = () => {
    const reason = $("reason").value.trim().replace(/\s+/g, " ");
    const command = about.exclude + (reason ? ` --reason ${quoted(reason)}` : "");
    const uids = [...marked.keys()];
    const lines = [];
    for (let i = 0; i < uids.length; i += 50) lines.push(`${command} -- ${uids.slice(i, i + 50).join(" ")}`);
    $("lines").value = lines.join("\n");
    $("tray").hidden = !uids.length;
    $("tray-count").textContent = `${counted(uids.length, "object")} marked`;
    $("copy").textContent = "Copy";
  };
  const copy = async () => {
    try {
      await navigator.clipboard.writeText($("lines").value);
      $("copy").textContent = "Copied";
    } catch { // no clipboard over plain http from another machine
      $("lines").select();
      $("copy").textContent = document.execCommand("copy") ? "Copied" : "Press Ctrl+C";
    }
  };

  // --- pictures to search by -------------------------------------------------------------------------------------------

  const searchByPicture = async (file) => {
    if (!about.near || !file) return;
    picture = file;
    try {
      const image = await createImageBitmap(file);
      const canvas = $("asked-picture");
      const scale = Math.min(canvas.width / image.width, canvas.height / image.height);
      const [width, height] = [image.width * scale, image.height * scale];
      canvas.getContext("2d").clearRect(0, 0, canvas.width, canvas.height);
      canvas.getContext("2d").drawImage(image, (canvas.width - width) / 2, (canvas.height - height) / 2, width, height);
    } catch { // the server says what is wrong with it
    }
    if ($("detail").open) $("detail").close();
    change({ tab: "", q: "", like: "" }, { keep: true });
  };

  // --- controls --------------------------------------------------------------------------------------------------------

  const fill = (id, choices, all) => {
    const chosen = state[id];
    $(id).replaceChildren(element("option", { value: "", textContent: all }),
      ...choices.map(([label, count]) => element("option", { value: label, textContent: `${label} (${number(count)})` })));
    $(id).value = chosen;
  };
  const notice = (text) => {
    $("notice").textContent = text;
    $("notice").hidden = !text;
  };
  const listen = () => {
    let pause = 0;
    $("search").addEventListener("submit", (event) => {
      event.preventDefault();
      clearTimeout(pause);
      if (!$("q").hidden) change({ q: $("q").value.trim(), like: "" });
    });
    $("q").addEventListener("input", () => {
      clearTimeout(pause);
      const typed = state.by === "words" || failures() || !$("q").value;
      if (typed) pause = setTimeout(() => change({ q: $("q").value.trim(), like: "" }, { push: false }), WORDS_PAUSE);
    });
    $("by").addEventListener("change", () => change({ by: $("by").value, q: $("q").value.trim() }, { keep: true }));
    $("asked-clear").addEventListener("click", () => {
      change({ like: "" });
      $("q").focus();
    });
    for (const name of FILTERS) $(name).addEventListener("change", () => change({ [name]: $(name).value }, { keep: true }));
    $("filters").addEventListener("submit", (event) => event.preventDefault());
    $("filters").addEventListener("reset", (event) => {
      event.preventDefault();
      change(Object.fromEntries(FILTERS.map((name) => [name, ""])), { keep: true });
    });
    $("tab-objects").addEventListener("click", () => change({ tab: "", q: "", like: "" }));
    $("tab-failures").addEventListener("click", () => change({ tab: "failures", q: "", like: "" }));
    $("picture").addEventListener("change", () => {
      searchByPicture($("picture").files[0]);
      $("picture").value = "";
    });
    $("picture-label").addEventListener("keydown", (event) => {
      if (event.key === "Enter" || event.key === " ") $("picture").click();
    });
    $("more").querySelector("button").addEventListener("click", more);
    new IntersectionObserver((entries) => entries.some((entry) => entry.isIntersecting) && more(), { rootMargin: "600px" }).observe($("more"));

    $("detail").addEventListener("close", closeDetail);
    $("detail").addEventListener("click", (event) => { if (event.target === $("detail")) $("detail").close(); });
    $("close").addEventListener("click", () => $("detail").close());
    $("previous").addEventListener("click", () => step(-1));
    $("next").addEventListener("click", () => step(1));
    $("like").addEventListener("click", () => {
      const uid = state.uid;
      $("detail").close();
      change({ tab: "", q: "", like: uid });
      window.scrollTo(0, 0);
    });
    $("mark").addEventListener("click", () => mark(state.uid, !marked.has(state.uid)));
    $("unmark").addEventListener("click", () => [...marked.keys()].forEach((uid) => mark(uid, false)));
    $("reason").addEventListener("input", showTray);
    $("copy").addEventListener("click", copy);

    listenToMouse();
    const wide = window.matchMedia("(min-width: 721px)");
    const unfold = () => { $("filters-open").open = wide.matches; };
    wide.addEventListener("change", unfold);
    unfold();

    let depth = 0; // of elements that a dragged file is over
    const carries = (event) => [...(event.dataTransfer?.types || [])].includes("Files");
    const over = (by) => {
      depth = Math.max(0, depth + by);
      $("drop").hidden = !depth || !about.near;
    };
    window.addEventListener("dragenter", (event) => carries(event) && over(1));
    window.addEventListener("dragleave", (event) => carries(event) && over(-1));
    window.addEventListener("dragover", (event) => carries(event) && event.preventDefault());
    window.addEventListener("drop", (event) => {
      if (!carries(event)) return;
      event.preventDefault();
      over(-depth);
      searchByPicture(event.dataTransfer.files[0]);
    });
    window.addEventListener("paste", (event) => {
      const file = [...(event.clipboardData?.files || [])].find((one) => one.type.startsWith("image/"));
      if (file) searchByPicture(file);
    });
    window.addEventListener("popstate", () => {
      readAddress();
      showControls();
      list();
      if (state.uid) showDetail();
      else if ($("detail").open) $("detail").close();
    });
    document.addEventListener("keydown", keys);
  };
  const keys = (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const typing = event.target.closest("input:not([type=checkbox]), select, textarea");
    if (event.key === "Escape" && event.target === $("q")) $("q").blur();
    if (typing) return;
    if ($("detail").open) {
      if (MOVES[event.key] && event.target.tagName !== "CANVAS") step(MOVES[event.key]);
      if (event.key === "x") mark(state.uid, !marked.has(state.uid));
      return;
    }
    if (event.key === "/") {
      event.preventDefault();
      if (!$("q").hidden) $("q").focus();
      else $("asked-clear").focus();
      return;
    }
    const cards = [...document.querySelectorAll("#list .card")];
    const here = cards.indexOf(event.target);
    if (event.key === "x" && here >= 0) mark(cards[here].dataset.uid, !marked.has(cards[here].dataset.uid));
    if (!event.key.startsWith("Arrow") || !cards.length) return;
    const row = cards.findIndex((one) => one.offsetParent && one.parentElement.offsetTop > cards[0].parentElement.offsetTop);
    const columns = row < 0 ? cards.length : row;
    const by = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns }[event.key];
    const next = here < 0 ? 0 : here + by;
    if (here < 0 && event.target !== document.body) return;
    event.preventDefault();
    if (cards[next]) cards[next].focus();
    else if (next >= cards.length) more();
  };

  const start = async () => {
    try {
      about = await (await ask("api/about")).json();
    } catch (error) {
      $("status").textContent = error.message;
      return;
    }
    document.title = `${about.title} – clipgs`;
    $("title").textContent = about.title;
    $("title").title = `${about.title}, ${counted(about.objects, "object")}${about.run ? `, run ${about.run}` : ""}`;
    for (const name of ["category", "license", "split"]) fill(name, about.facets[name], "all");
    $("psnr").hidden = !about.psnr;
    if (!about.psnr) $("psnr").removeAttribute("data-tab");
    if (about.psnr) [$("psnr_min").placeholder, $("psnr_max").placeholder] = about.psnr.map((value) => value.toFixed(0));
    if (!about.judged) $("sort").querySelector('[value="caption"]').remove();
    if (!about.near) {
      $("by").value = "words";
      $("by").disabled = true;
      $("by").title = about.no_search;
      if (about.run) notice(about.no_search);
    }
    if (about.near && !["loading", "ready"].includes(about.reader)) notice(`No search by text or picture: ${about.reader}`);
    if (about.lacking) notice(`${counted(about.lacking, "object")} came after the run's embeddings: only words find them.`);
    $("viewer").dataset.pixels = about.pixels;
    readAddress();
    listen();
    showControls();
    await list();
    if (state.uid) showDetail();
  };
  start();
})();
