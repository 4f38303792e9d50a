// A nodule as the server sends it (raymat/review/payload.py), and its slices as pixels.
//
// Arrays are (z, y, x) on the patient's axes: z to the head, y to the back, x to the left.

export const PLANES = ["axial", "coronal", "sagittal"];
// Which array axes run down and across in each plane, and whether the downward one is turned over (head up).
const AXES = [[1, 2, false], [0, 2, true], [0, 1, true]];
export const SIDES = [["R", "L", "A", "P"], ["R", "L", "S", "I"], ["A", "P", "S", "I"]]; // left, right, top, bottom

// Redder means more lesion: the stops of raymat/pictures/view.py.
const STOPS = [[255, 243, 160], [255, 201, 60], [255, 138, 31], [244, 65, 30], [196, 0, 15]];
const FULL_FROM = 0.3; // alpha from which the overlay has its full opacity
export const COLOURS = new Uint8Array(256 * 3);
export const COVER = new Float32Array(256);
for (let a = 0; a < 256; a++) {
  const at = (a / 255) * (STOPS.length - 1), low = Math.min(Math.floor(at), STOPS.length - 2), t = at - low;
  for (let c = 0; c < 3; c++) COLOURS[3 * a + c] = STOPS[low][c] * (1 - t) + STOPS[low + 1][c] * t;
  COVER[a] = Math.min(a / 255 / FULL_FROM, 1);
}

export function parse(buffer) {
  const length = new DataView(buffer).getUint32(0, true);
  const nodule = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, length)));
  const start = 4 + length;
  const count = (shape) => shape[0] * shape[1] * shape[2];
  nodule.boxShape = nodule.box.map(([low, high]) => high - low);
  // A nodule of one channel has no list of channels.
  nodule.channels ??= [{ name: "image", hu: true, image: nodule.image, slope: nodule.slope, intercept: nodule.intercept }];
  for (const channel of nodule.channels) channel.values = new Uint16Array(buffer, start + channel.image, count(nodule.shape));
  nodule.readers = nodule.readers.map((at) => new Uint8Array(buffer, start + at, count(nodule.boxShape)));
  for (const matte of nodule.mattes) matte.alpha = new Uint8Array(buffer, start + matte.offset, count(nodule.boxShape));
  return nodule;
}

// Rows and columns of a plane's slice, and their size in mm.
export function planeShape(nodule, plane) {
  const [down, across] = AXES[plane];
  return {
    rows: nodule.shape[down], columns: nodule.shape[across],
    height: nodule.shape[down] * nodule.spacing[down], width: nodule.shape[across] * nodule.spacing[across],
    // The middle of the field of view, mm from the slice's upper left corner.
    y: (AXES[plane][2] ? nodule.shape[down] - nodule.middle[down] - 0.5 : nodule.middle[down] + 0.5) *
      nodule.spacing[down],
    x: (nodule.middle[across] + 0.5) * nodule.spacing[across],
  };
}

// Array index [z, y, x] of a pixel of a plane's slice.
export function voxelAt(nodule, plane, slice, row, column) {
  const [down, across, turned] = AXES[plane], index = [0, 0, 0];
  index[plane] = slice;
  index[down] = turned ? nodule.shape[down] - 1 - row : row;
  index[across] = column;
  return index.map((value, axis) => Math.max(0, Math.min(nodule.shape[axis] - 1, value)));
}

// Where a voxel lies in a plane's slice: row and column.
export function pixelOf(nodule, plane, index) {
  const [down, across, turned] = AXES[plane];
  return [turned ? nodule.shape[down] - 1 - index[down] : index[down], index[across]];
}

const strides = (shape) => [shape[1] * shape[2], shape[2], 1];

// Grey values 0 to 255 of a channel's slice in a window.
export function greySlice(nodule, channel, plane, slice, level, width) {
  const [down, across, turned] = AXES[plane], stride = strides(nodule.shape);
  const rows = nodule.shape[down], columns = nodule.shape[across], grey = new Uint8ClampedArray(rows * columns);
  const gain = (255 * channel.slope) / width, base = (255 * (channel.intercept - level + width / 2)) / width;
  const step = stride[across];
  for (let r = 0, out = 0; r < rows; r++) {
    let at = slice * stride[plane] + (turned ? rows - 1 - r : r) * stride[down];
    for (let c = 0; c < columns; c++, at += step) grey[out++] = channel.values[at] * gain + base;
  }
  return grey;
}

// A slice of an array that is cut to the nodule's box; null where the slice passes it by.
export function boxSlice(nodule, array, plane, slice) {
  const [down, across, turned] = AXES[plane], stride = strides(nodule.boxShape), box = nodule.box;
  const k = slice - box[plane][0];
  if (k < 0 || k >= nodule.boxShape[plane]) return null;
  const rows = nodule.boxShape[down], columns = nodule.boxShape[across], values = new Uint8Array(rows * columns);
  const step = stride[across];
  for (let r = 0, out = 0; r < rows; r++) {
    let at = k * stride[plane] + (turned ? rows - 1 - r : r) * stride[down];
    for (let c = 0; c < columns; c++, at += step) values[out++] = array[at];
  }
  const top = turned ? nodule.shape[down] - box[down][1] : box[down][0];
  return { values, rows, columns, top, left: box[across][0] };
}

// Line segments half-way between voxels in and out of a mask, in pixels of the slice: x0, y0, x1, y1 and so on.
// Marching squares over the mask and a margin of one.
const LINES = [[], [[3, 2]], [[2, 1]], [[3, 1]], [[0, 1]], [[3, 0], [1, 2]], [[0, 2]], [[3, 0]], [[3, 0]], [[0, 2]],
  [[0, 1], [2, 3]], [[0, 1]], [[3, 1]], [[2, 1]], [[3, 2]], []];
const EDGES = [[0.5, 0], [1, 0.5], [0.5, 1], [0, 0.5]]; // top, right, bottom, left
export function outline(cut) {
  const { values, rows, columns, top, left } = cut, lines = [];
  const at = (r, c) => (r < 0 || c < 0 || r >= rows || c >= columns ? 0 : values[r * columns + c]);
  for (let r = -1; r < rows; r++) {
    for (let c = -1; c < columns; c++) {
      const kind = 8 * at(r, c) + 4 * at(r, c + 1) + 2 * at(r + 1, c + 1) + at(r + 1, c);
      for (const [from, to] of LINES[kind]) {
        // Centres of pixels lie at halves.
        const x = left + c + 0.5, y = top + r + 0.5;
        lines.push(x + EDGES[from][0], y + EDGES[from][1], x + EDGES[to][0], y + EDGES[to][1]);
      }
    }
  }
  return lines;
}
