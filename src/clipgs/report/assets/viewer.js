// Shows a splat that can be turned: WebGL 2, no library. Zwicker et al. 2001 (EWA splatting), as 3D Gaussian Splatting
// uses it: each Gaussian becomes an ellipse on the screen, drawn from back to front.
// `splatViewer(viewer)` takes an element with a canvas and perhaps the buttons .nearer and .farther. Its `data-pixels` is
// the size of the pictures that the splats were fitted to, `data-distance` how far the camera is at first. `show` takes
// the bytes of a .splat. Without WebGL 2 the element
// gets the class `still`, and `show` does nothing: the page then shows its picture.
"use strict";
const splatViewer = (viewer) => {
  const canvas = viewer.querySelector("canvas");
  const ROW_BYTES = 32; // of .splat: position 3 f32, scale 3 f32, rgba 4 u8, quaternion wxyz 4 u8
  const TEXELS = 3, PER_LINE = 512; // texels a Gaussian, Gaussians a line of the texture
  const FOV = (40 * Math.PI) / 180, FARTHEST = 6, NEAREST = 0.9, START = Number(viewer.dataset.distance) || 2.0;
  const SORT_BUCKETS = 1 << 16;
  const trainedPixels = Number(viewer.dataset.pixels);

  const gl = canvas.getContext("webgl2", { alpha: true, antialias: false, premultipliedAlpha: true });
  if (!gl) {
    viewer.classList.add("still");
    return { show: () => {}, still: true };
  }

  const VERTEX = `#version 300 es
    precision highp float;
    uniform highp sampler2D gaussians;
    uniform mat3 rotation;
    uniform vec3 translation;
    uniform vec2 size;
    uniform float focal, blur;
    in vec2 corner;
    in uint which;
    out vec2 at;
    out vec4 color;
    void main() {
      ivec2 texel = ivec2(int(which % ${PER_LINE}u) * ${TEXELS}, int(which / ${PER_LINE}u));
      vec4 first = texelFetch(gaussians, texel, 0);
      vec4 second = texelFetch(gaussians, texel + ivec2(1, 0), 0);
      vec4 third = texelFetch(gaussians, texel + ivec2(2, 0), 0);
      vec3 p = rotation * first.xyz + translation;
      gl_Position = vec4(2.0, 2.0, 2.0, 1.0);
      if (p.z < 0.05 || first.w < 1.0 / 255.0) return;
      mat3 sigma = mat3(second.x, second.y, second.z, second.y, second.w, third.x, second.z, third.x, third.y);
      vec2 slope = clamp(p.xy / p.z, -2.0, 2.0);
      mat3 jacobian = mat3(focal / p.z, 0.0, 0.0, 0.0, focal / p.z, 0.0,
                           -focal * slope.x / p.z, -focal * slope.y / p.z, 0.0);
      mat3 t = jacobian * rotation;
      mat3 flat_ = t * sigma * transpose(t);
      float a = flat_[0][0] + blur, b = flat_[0][1], d = flat_[1][1] + blur;
      float middle = 0.5 * (a + d), spread = length(vec2(0.5 * (a - d), b));
      float big = middle + spread, small = max(middle - spread, 0.05);
      vec2 axis = abs(b) > 1e-6 ? normalize(vec2(b, big - a)) : (a >= d ? vec2(1.0, 0.0) : vec2(0.0, 1.0));
      float reach = sqrt(2.0 * log(255.0 * first.w));
      at = corner * reach;
      vec2 offset = at.x * sqrt(big) * axis + at.y * sqrt(small) * vec2(-axis.y, axis.x);
      vec2 pixel = focal * p.xy / p.z + offset;
      gl_Position = vec4(2.0 * pixel.x / size.x, -2.0 * pixel.y / size.y, 0.0, 1.0);
      uint rgb = uint(third.z);
      color = vec4(float(rgb & 255u), float((rgb >> 8) & 255u), float(rgb >> 16), 255.0 * first.w) / 255.0;
    }`;
  const FRAGMENT = `#version 300 es
    precision highp float;
    in vec2 at;
    in vec4 color;
    out vec4 result;
    void main() {
      float alpha = min(0.999, color.a * exp(-0.5 * dot(at, at)));
      if (alpha < 1.0 / 255.0) discard;
      result = vec4(color.rgb * alpha, alpha);
    }`;

  const compile = (kind, source) => {
    const shader = gl.createShader(kind);
    gl.shaderSource(shader, source);
    gl.compileShader(shader);
    if (!gl.getShaderParameter(shader, gl.COMPILE_STATUS)) throw new Error(gl.getShaderInfoLog(shader));
    return shader;
  };
  const program = gl.createProgram();
  gl.attachShader(program, compile(gl.VERTEX_SHADER, VERTEX));
  gl.attachShader(program, compile(gl.FRAGMENT_SHADER, FRAGMENT));
  gl.linkProgram(program);
  if (!gl.getProgramParameter(program, gl.LINK_STATUS)) throw new Error(gl.getProgramInfoLog(program));
  gl.useProgram(program);
  const place = (name) => gl.getUniformLocation(program, name);
  const uniforms = {};
  for (const name of ["rotation", "translation", "size", "focal", "blur"]) uniforms[name] = place(name);

  const corners = gl.createBuffer();
  gl.bindBuffer(gl.ARRAY_BUFFER, corners);
  gl.bufferData(gl.ARRAY_BUFFER, new Float32Array([-1, -1, 1, -1, -1, 1, 1, 1]), gl.STATIC_DRAW);
  const cornerPlace = gl.getAttribLocation(program, "corner");
  gl.enableVertexAttribArray(cornerPlace);
  gl.vertexAttribPointer(cornerPlace, 2, gl.FLOAT, false, 0, 0);
  const order = gl.createBuffer();
  gl.bindBuffer(gl.ARRAY_BUFFER, order);
  const whichPlace = gl.getAttribLocation(program, "which");
  gl.enableVertexAttribArray(whichPlace);
  gl.vertexAttribIPointer(whichPlace, 1, gl.UNSIGNED_INT, 0, 0);
  gl.vertexAttribDivisor(whichPlace, 1);
  const texture = gl.createTexture();
  gl.bindTexture(gl.TEXTURE_2D, texture);
  for (const side of [gl.TEXTURE_MIN_FILTER, gl.TEXTURE_MAG_FILTER]) gl.texParameteri(gl.TEXTURE_2D, side, gl.NEAREST);
  gl.enable(gl.BLEND);
  gl.blendFunc(gl.ONE, gl.ONE_MINUS_SRC_ALPHA);
  gl.clearColor(0, 0, 0, 0);

  let count = 0, means = new Float32Array(0), sorted = new Uint32Array(0), keys = new Uint16Array(0);
  const tally = new Uint32Array(SORT_BUCKETS + 1);

  const load = (bytes) => {
    count = Math.floor(bytes.length / ROW_BYTES);
    const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    const lines = Math.max(1, Math.ceil(count / PER_LINE));
    const data = new Float32Array(lines * PER_LINE * TEXELS * 4);
    means = new Float32Array(3 * count);
    sorted = new Uint32Array(count);
    keys = new Uint16Array(count);
    for (let i = 0; i < count; i++) {
      const row = i * ROW_BYTES;
      const f = (k) => view.getFloat32(row + 4 * k, true);
      const q = [0, 1, 2, 3].map((k) => (bytes[row + 28 + k] - 128) / 128);
      const n = Math.hypot(...q) || 1;
      const [w, x, y, z] = q.map((v) => v / n);
      const r = [
        1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
        2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
        2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y),
      ];
      const s = [f(3) ** 2, f(4) ** 2, f(5) ** 2];
      const c = (a, b) => r[3 * a] * s[0] * r[3 * b] + r[3 * a + 1] * s[1] * r[3 * b + 1] + r[3 * a + 2] * s[2] * r[3 * b + 2];
      const rgb = bytes[row + 24] | (bytes[row + 25] << 8) | (bytes[row + 26] << 16);
      means.set([f(0), f(1), f(2)], 3 * i);
      data.set([f(0), f(1), f(2), bytes[row + 27] / 255, c(0, 0), c(0, 1), c(0, 2), c(1, 1), c(1, 2), c(2, 2), rgb, 0],
               i * TEXELS * 4);
    }
    gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGBA32F, PER_LINE * TEXELS, lines, 0, gl.RGBA, gl.FLOAT, data);
  };

  const sort = (forward) => { // counting sort, farthest first
    let low = Infinity, high = -Infinity;
    const depth = (i) => means[3 * i] * forward[0] + means[3 * i + 1] * forward[1] + means[3 * i + 2] * forward[2];
    for (let i = 0; i < count; i++) {
      const d = depth(i);
      if (d < low) low = d;
      if (d > high) high = d;
    }
    const scale = (SORT_BUCKETS - 1) / Math.max(1e-9, high - low);
    tally.fill(0);
    for (let i = 0; i < count; i++) {
      keys[i] = (high - depth(i)) * scale;
      tally[keys[i] + 1]++;
    }
    for (let i = 0; i < SORT_BUCKETS; i++) tally[i + 1] += tally[i];
    for (let i = 0; i < count; i++) sorted[tally[keys[i]]++] = i;
    gl.bufferData(gl.ARRAY_BUFFER, sorted, gl.DYNAMIC_DRAW);
  };

  const camera = { yaw: Math.atan2(0.62, 0.66), pitch: Math.asin(0.42), distance: START };
  const cross = (a, b) => [a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]];
  const dot = (a, b) => a[0] * b[0] + a[1] * b[1] + a[2] * b[2];

  const draw = () => {
    const ratio = Math.min(2, window.devicePixelRatio || 1);
    const width = Math.max(1, Math.round(canvas.clientWidth * ratio));
    const height = Math.max(1, Math.round(canvas.clientHeight * ratio));
    if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
    gl.viewport(0, 0, width, height);
    gl.clear(gl.COLOR_BUFFER_BIT);
    const { yaw, pitch, distance } = camera;
    const forward = [-Math.cos(pitch) * Math.sin(yaw), -Math.sin(pitch), -Math.cos(pitch) * Math.cos(yaw)];
    const right = [Math.cos(yaw), 0, -Math.sin(yaw)];
    const down = cross(forward, right);
    const eye = forward.map((v) => -distance * v);
    const short = Math.min(width, height);
    const focal = short / 2 / Math.tan(FOV / 2);
    sort(forward);
    gl.uniformMatrix3fv(uniforms.rotation, true, [...right, ...down, ...forward]);
    gl.uniform3fv(uniforms.translation, [right, down, forward].map((axis) => -dot(axis, eye)));
    gl.uniform2f(uniforms.size, width, height);
    gl.uniform1f(uniforms.focal, focal);
    gl.uniform1f(uniforms.blur, 0.3 * (short / trainedPixels) ** 2); // as wide as it was when it was fitted
    gl.drawArraysInstanced(gl.TRIANGLE_STRIP, 0, 4, count);
  };

  let asked = false, seen = true, last = 0;
  let turning = !window.matchMedia("(prefers-reduced-motion: reduce)").matches;
  const frame = (now) => {
    asked = false;
    if (turning) camera.yaw += Math.min(0.05, (now - last) * 0.0004);
    last = now;
    draw();
    if (turning && seen) ask();
  };
  const ask = () => {
    if (!asked) requestAnimationFrame(frame);
    asked = true;
  };
  const turn = (yaw, pitch) => {
    turning = false;
    camera.yaw += yaw;
    camera.pitch = Math.max(-1.5, Math.min(1.5, camera.pitch + pitch));
    ask();
  };
  const zoom = (factor) => {
    turning = false;
    camera.distance = Math.max(NEAREST, Math.min(FARTHEST, camera.distance * factor));
    ask();
  };

  canvas.addEventListener("pointerdown", (event) => canvas.setPointerCapture(event.pointerId));
  canvas.addEventListener("pointermove", (event) => {
    if (!canvas.hasPointerCapture(event.pointerId) || !event.isPrimary) return;
    turn(-event.movementX * 0.01, event.movementY * 0.01);
  });
  canvas.addEventListener("wheel", (event) => {
    if (!event.ctrlKey && !event.metaKey) return; // the page scrolls; a pinch on a touchpad comes with ctrlKey
    event.preventDefault();
    zoom(Math.exp(event.deltaY * 0.001));
  }, { passive: false });
  const KEYS = {
    ArrowLeft: () => turn(0.1, 0), ArrowRight: () => turn(-0.1, 0), ArrowUp: () => turn(0, 0.1),
    ArrowDown: () => turn(0, -0.1), "+": () => zoom(0.9), "-": () => zoom(1.1),
  };
  canvas.addEventListener("keydown", (event) => {
    if (!KEYS[event.key]) return;
    event.preventDefault();
    KEYS[event.key]();
  });
  viewer.querySelector(".nearer")?.addEventListener("click", () => zoom(0.85));
  viewer.querySelector(".farther")?.addEventListener("click", () => zoom(1.18));
  new IntersectionObserver(([entry]) => {
    seen = entry.isIntersecting;
    if (seen) ask();
  }).observe(canvas);
  new ResizeObserver(ask).observe(canvas);

  const show = (bytes) => {
    load(bytes);
    viewer.classList.add("live");
    ask();
  };
  canvas.addEventListener("webglcontextlost", () => viewer.classList.replace("live", "still"));
  return { show, still: false };
};
