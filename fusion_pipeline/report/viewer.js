// The viewer of a report: NiiVue draws, this wires it to the page. Nothing is loaded from outside.
"use strict";
(() => {
  const root = document.getElementById("viewer");
  const facts = JSON.parse(document.getElementById("viewer-facts").textContent);
  const part = (name) => root.querySelector(`[data-part="${name}"]`);
  const flat = facts.extent.length === 2;
  const FLICKER_MS = 700;
  const PLANES = { all: 3, axial: 0, coronal: 1, sagittal: 2 };
  const state = { base: 0, overlay: -1, before: false, blend: 0.6, planes: "all", marks: true };
  let nv, images, shades, timer;

  const bytesOf = (id) =>
    Uint8Array.from(atob(document.getElementById(id).textContent.trim()), (c) => c.charCodeAt(0));

  async function unpacked(id) {
    const stream = new Blob([bytesOf(id)]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Response(stream).text();
  }

  const isEmission = (v) => v.colours === "uptake";
  const volumes = facts.volumes;
  const twin = (n, role) =>
    volumes.findIndex((v) => v.key === volumes[n].key && v.role === role);

  const marksOf = (moment) => volumes.findIndex((v) => v.role === (moment ? "marks-before" : "marks"));
  const isLayer = (v) => !["before", "marks", "marks-before", "colour"].includes(v.role);

  // the overlay that is shown: before registration its twin that the headers alone place
  function shownOverlay() {
    if (state.overlay < 0 || !state.before) return state.overlay;
    const before = volumes[state.overlay].role === "after" ? twin(state.overlay, "before") : -1;
    return before < 0 ? state.overlay : before;
  }

  function startState() {
    const emission = volumes.findIndex((v) => v.role === "after" && isEmission(v));
    const anatomy = volumes.findIndex((v) => v.role === "after" && !isEmission(v));
    state.overlay = emission >= 0 ? emission : anatomy;
    if (isEmission(volumes[0]) && anatomy >= 0) {
      state.base = anatomy;
      state.overlay = 0;
    }
    state.blend = emission >= 0 || isEmission(volumes[0]) ? 0.75 : 0.5;
  }

  // Uptake is the more opaque the higher it is, so that the anatomy stays visible between.
  // NiiVue takes the opacity of a layer from another volume, which is itself not drawn.
  function shadeOf(n) {
    const image = images[n];
    if (!shades[n]) {
      shades[n] = image.clone();
      shades[n].img = new Int16Array(image.img.length);
      shades[n].opacity = 0;
    }
    const slope = image.hdr.scl_slope;
    const { cal_min: low, cal_max: high } = image;
    const shade = shades[n].img;
    for (let i = 0; i < shade.length; i++) {
      const unit = (image.img[i] * slope - low) / (high - low);
      shade[i] = 10000 * state.blend * Math.min(1, Math.max(0, 2 * unit));
    }
    shades[n].cal_min = 0;
    shades[n].cal_max = 10000 * slope;
    return shades[n];
  }

  // NiiVue forgets the window when the colours change
  function paint(image, colours) {
    const name = `fp_${colours}`;
    if (image.colormap === name) return;
    const { cal_min: low, cal_max: high } = image;
    image.setColormap(name);
    [image.cal_min, image.cal_max] = [low, high];
  }

  function draw() {
    const over = shownOverlay();
    const base = images[state.base];
    base.opacity = 1;
    if (volumes[state.base].role !== "colour") paint(base, isEmission(volumes[state.base]) ? "inverted" : "grey");
    const layers = [base];
    if (over >= 0 && over !== state.base) {
      const image = images[over];
      paint(image, volumes[over].colours);
      image.opacity = state.blend;
      image.modulationImage = null;
      layers.push(image);
      if (isEmission(volumes[over])) {
        layers.push(shadeOf(over));
        image.modulationImage = 2;
        image.modulateAlpha = 1;
      }
    }
    const marks = state.marks ? marksOf(state.before) : -1;
    if (marks >= 0) {
      paint(images[marks], "marks");
      images[marks].opacity = 1;
      layers.push(images[marks]);
    }
    nv.volumes = layers;
    nv.back = layers[0];
    nv.overlays = layers.slice(1);
    nv.updateGLVolume();
    say();
  }

  const digits = (span) => (span > 50 ? 0 : span > 5 ? 1 : 2);
  const text = (value, span) => value.toFixed(digits(span)).replace("-", "−");

  function valueAt(n, mm) {
    const { hdr, img } = images[n];
    const affine = hdr.affine;
    const voxel = [0, 1, 2].map((a) => Math.round((mm[a] - affine[a][3]) / affine[a][a]));
    const shape = hdr.dims.slice(1, 4);
    if (voxel.some((v, a) => v < 0 || v >= shape[a])) return null;
    const raw = img[voxel[0] + shape[0] * (voxel[1] + shape[1] * voxel[2])];
    return raw === -32768 ? null : raw * hdr.scl_slope;
  }

  function positionText(mm) {
    if (flat) {
      const m = facts.voxel_from_world;
      const [x, y] = m.slice(0, 2).map((row) => row[0] * mm[0] + row[1] * mm[1] + row[2]);
      return `column ${x.toFixed(0)}, row ${y.toFixed(0)}`;
    }
    const sides = ["LR", "PA", "IS"];
    return `${[0, 1, 2]
      .map((a) => `${sides[a][mm[a] >= 0 ? 1 : 0]} ${Math.abs(mm[a]).toFixed(1)}`)
      .join("  ")} mm`;
  }

  function locate(location) {
    const mm = location.mm;
    part("position").textContent = positionText(mm);
    const shownAt = (n) => {
      const value = n < 0 ? null : valueAt(n, mm);
      return value === null ? "–" : text(value, volumes[n].high - volumes[n].low);
    };
    const rows = volumes.flatMap((v, n) => {
      if (!isLayer(v)) return [];
      const row = document.createElement("div");
      const [name, shown] = [document.createElement("dt"), document.createElement("dd")];
      name.textContent = v.title;
      const earlier = v.role === "after" && twin(n, "before") >= 0 ? ` (before ${shownAt(twin(n, "before"))})` : "";
      shown.textContent = [shownAt(n), v.units].filter(Boolean).join(" ") + earlier;
      row.append(name, shown);
      return [row];
    });
    part("values").replaceChildren(...rows);
  }

  // the words around the picture: names, windows and the bar of colours
  function say() {
    const over = shownOverlay();
    const name = over < 0 || over === state.base ? "" : volumes[over].title;
    part("caption").textContent = name ? `${name} on ${volumes[state.base].title}` : volumes[state.base].title;
    part("before").classList.toggle("on", state.before);
    part("after").classList.toggle("on", !state.before);
    const paired = state.overlay >= 0 && volumes[state.overlay].role === "after";
    const moved = (paired && twin(state.overlay, "before") >= 0) || marksOf(true) >= 0;
    for (const one of ["before", "after"]) part(one).disabled = !moved;
    const bar = part("bar");
    bar.hidden = !name;
    if (!name) return fillWindows();
    const { low, high } = windowOf(over);
    const nodes = facts.colours[volumes[over].colours];
    const stops = nodes.I.map((i, k) => `rgb(${nodes.R[k]},${nodes.G[k]},${nodes.B[k]}) ${(i / 2.55).toFixed(1)}%`);
    part("colours").style.background = `linear-gradient(90deg, ${stops.join(",")})`;
    part("ticks").replaceChildren(
      ...[low, (low + high) / 2, high].map((v) => {
        const tick = document.createElement("span");
        tick.textContent = text(v, high - low);
        return tick;
      }),
    );
    part("measure").textContent = [volumes[over].title, volumes[over].units].filter(Boolean).join(", ");
    fillWindows();
  }

  const windowOf = (n) => ({ low: images[n].cal_min, high: images[n].cal_max });

  function fillWindows() {
    for (const [which, n] of [["base", state.base], ["overlay", shownOverlay()]]) {
      const row = part(`${which}-window`);
      row.hidden = n < 0 || volumes[n].role === "colour" || (which === "overlay" && n === state.base);
      if (row.hidden) continue;
      const { low, high } = windowOf(n);
      const span = high - low;
      row.querySelector("b").textContent = volumes[n].title;
      const [first, last] = row.querySelectorAll("input");
      for (const [input, value] of [[first, low], [last, high]]) {
        input.value = value.toFixed(digits(span));
        input.step = span > 50 ? 10 : span > 5 ? 0.5 : 0.05;
      }
    }
    const ct = volumes[state.base].units === "HU";
    part("presets").hidden = !ct || !Object.keys(facts.presets).length;
  }

  function setWindow(n, low, high) {
    if (!Number.isFinite(low) || !Number.isFinite(high) || high <= low) return fillWindows();
    // before and after are compared in one window
    for (const [k, v] of volumes.entries()) {
      if (k === n || (v.key === volumes[n].key && v.key && ["before", "after"].includes(v.role) && ["before", "after"].includes(volumes[n].role)))
        [images[k].cal_min, images[k].cal_max] = [low, high];
    }
    draw();
  }

  function flicker(mode) {
    clearInterval(timer);
    timer = undefined;
    part("flicker").value = mode;
    if (mode === "off") return;
    timer = setInterval(() => {
      if (mode === "moment") state.before = !state.before;
      else state.blend = state.blend > 0 ? 0 : 1;
      draw();
    }, FLICKER_MS);
  }

  function stopFlicker() {
    if (!timer) return;
    flicker("off");
    state.blend = Number(part("blend").value) / 100;
    state.before = false;
  }

  function layout() {
    const box = part("box");
    const [x, y, z = 0] = facts.extent;
    const width = box.clientWidth;
    const narrow = width < 620;
    const one = { axial: y / x, coronal: z / x, sagittal: z / y };
    let height;
    if (flat) height = (width * y) / x;
    else if (state.planes !== "all") height = width * one[state.planes];
    else if (narrow) height = (width * (y + z)) / (x + y);
    else height = (width * Math.max(y, z)) / (2 * x + y);
    box.style.height = `${Math.round(Math.min(Math.max(height, 220), narrow ? 720 : 560))}px`;
    if (flat || state.planes !== "all") nv.setSliceType(PLANES[flat ? "axial" : state.planes]);
    else {
      nv.setSliceType(PLANES.all);
      nv.setMultiplanarLayout(narrow ? 2 : 3); // grid, row
    }
    nv.resizeListener();
  }

  function option(n, title) {
    const entry = document.createElement("option");
    [entry.value, entry.textContent] = [n, title];
    return entry;
  }

  function controls() {
    const bases = volumes.flatMap((v, n) => (["reference", "after", "fused", "colour"].includes(v.role) ? [option(n, v.title)] : []));
    const overlays = volumes.flatMap((v, n) => (isLayer(v) ? [option(n, v.title)] : []));
    part("base").append(...bases);
    part("overlay").append(option(-1, "nothing"), ...overlays);
    part("base").value = state.base;
    part("overlay").value = state.overlay;
    part("blend").value = 100 * state.blend;
    for (const name of Object.keys(facts.presets)) part("preset").append(option(name, name));
    const on = (name, event, act) =>
      part(name).addEventListener(event, (e) => {
        if (name !== "flicker") stopFlicker();
        act(e.target);
        if (name !== "flicker") draw();
      });
    on("base", "change", (t) => (state.base = Number(t.value)));
    on("overlay", "change", (t) => {
      state.overlay = Number(t.value);
      state.before = false;
    });
    on("blend", "input", (t) => (state.blend = t.value / 100));
    on("before", "click", () => (state.before = true));
    on("after", "click", () => (state.before = false));
    on("flicker", "change", (t) => (t.value === "off" ? (stopFlicker(), draw()) : flicker(t.value)));
    on("planes", "change", (t) => {
      state.planes = t.value;
      layout();
    });
    on("preset", "change", (t) => {
      const [low, high] = facts.presets[t.value] ?? [];
      if (high !== undefined) setWindow(state.base, low, high);
    });
    for (const which of ["base", "overlay"]) {
      on(`${which}-window`, "change", () => {
        const [first, last] = part(`${which}-window`).querySelectorAll("input");
        setWindow(which === "base" ? state.base : shownOverlay(), first.valueAsNumber, last.valueAsNumber);
      });
    }
    on("nearer", "click", () => zoom(1.4));
    on("farther", "click", () => zoom(1 / 1.4));
    on("reset", "click", () => {
      volumes.forEach((v, n) => ([images[n].cal_min, images[n].cal_max] = [v.low, v.high]));
      nv.setPan2Dxyzmm([0, 0, 0, 1]);
      look();
    });
    part("planes").closest("label").hidden = flat;
    const marked = part("marks").closest("label");
    marked.hidden = !facts.marks.length;
    on("marks", "change", (t) => (state.marks = t.checked));
    for (const { title, colour } of facts.marks) {
      const [chip, name] = [document.createElement("i"), document.createElement("span")];
      chip.style.background = colour;
      name.append(chip, title);
      part("mark-colours").append(name);
    }
    const moments = part("before").parentElement;
    moments.hidden = !volumes.some((v) => v.role === "before");
    part("flicker").querySelector('[value="moment"]').hidden = moments.hidden;
  }

  // the point under the crosshair stays where it is
  function zoom(factor) {
    const pan = nv.scene.pan2Dxyzmm;
    const next = Math.min(Math.max(pan[3] * factor, 0.5), 12);
    const mm = nv.frac2mm(nv.scene.crosshairPos);
    nv.setPan2Dxyzmm([0, 1, 2].map((a) => pan[a] + (pan[3] - next) * mm[a]).concat(next));
  }

  function look() {
    const [x, y, z = 0] = facts.point;
    nv.scene.crosshairPos = nv.mm2frac([x, y, z]);
    nv.createOnLocationChange();
    nv.drawScene();
  }

  async function start() {
    if (!document.createElement("canvas").getContext("webgl2") || !window.DecompressionStream)
      throw new Error("This browser has no WebGL 2");
    const library = document.createElement("script");
    library.textContent = await unpacked("viewer-library");
    document.head.append(library);
    const { Niivue, NVImage, DRAG_MODE } = window.niivue;
    nv = new Niivue({
      isRadiologicalConvention: true,
      sagittalNoseLeft: true,
      multiplanarShowRender: 0,
      show3Dcrosshair: false,
      dragAndDropEnabled: false,
      isOrientationTextVisible: !flat,
      isResizeCanvas: true,
      crosshairColor: [0.35, 0.75, 1, 0.55],
      crosshairGap: 6,
      crosshairWidth: flat ? 0.15 : 0.5,
      fontColor: [1, 1, 1, 0.95],
      fontMinPx: 16,
      backColor: [0.035, 0.04, 0.05, 1],
      dragMode: DRAG_MODE.windowing,
      logLevel: "error",
      loadingText: "",
    });
    nv.onLocationChange = locate;
    nv.onIntensityChange = () => say();
    await nv.attachToCanvas(part("canvas"));
    for (const [name, nodes] of Object.entries(facts.colours)) nv.addColormap(`fp_${name}`, nodes);
    images = await Promise.all(
      volumes.map((v, n) =>
        NVImage.loadFromUrl({
          url: `v${n}.nii.gz`, buffer: bytesOf(`viewer-volume-${n}`).buffer,
          cal_min: v.low, cal_max: v.high, colormap: `fp_${v.colours}`,
        }),
      ),
    );
    volumes.forEach((v, n) => ([images[n].cal_min, images[n].cal_max] = [v.low, v.high]));
    shades = {};
    startState();
    root.classList.add("ready");
    controls();
    nv.setInterpolation(false);
    draw();
    layout();
    look();
    new ResizeObserver(layout).observe(root);
    root.dataset.state = "ready";
  }

  start().catch((error) => {
    root.classList.remove("ready");
    root.dataset.state = "failed";
    part("failure").textContent = `${error.message}: no scrolling here; the pictures below show the same.`;
  });
})();
