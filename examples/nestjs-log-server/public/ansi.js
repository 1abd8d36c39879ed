/**
 * Cuts text at the escape sequences of terminals (ECMA-48). Colours and bold become classes, the rest
 * is taken away.
 *
 * @param {string} text
 * @returns {{ text: string, classes: string }[]}
 */
export function pieces(text) {
  if (!text.includes('\u001b')) {
    return [{ text, classes: '' }];
  }
  /** @type {{ text: string, classes: string }[]} */
  const found = [];
  const sequence = /\u001b(?:\[([0-9;:?]*)([@-~])|\][^\u0007\u001b]*(?:\u0007|\u001b\\)?|[@-Z\\^_])/g;
  let style = { colour: '', bold: false, dim: false, italic: false, underlined: false };
  let from = 0;
  const push = (/** @type {number} */ to) => {
    if (to > from) {
      const classes = [style.colour, style.bold && 'bold', style.dim && 'dim', style.italic && 'italic', style.underlined && 'underlined'];
      found.push({ text: text.slice(from, to), classes: classes.filter(Boolean).join(' ') });
    }
  };
  for (const match of text.matchAll(sequence)) {
    push(match.index);
    from = match.index + match[0].length;
    if (match[2] === 'm') {
      style = apply(style, (match[1] ?? '').split(/[;:]/).map(Number));
    }
  }
  push(text.length);
  return found;
}

/**
 * @template {{ colour: string, bold: boolean, dim: boolean, italic: boolean, underlined: boolean }} S
 * @param {S} style @param {number[]} codes @returns {S}
 */
function apply(style, codes) {
  const next = { ...style };
  for (let i = 0; i < codes.length; i++) {
    const code = codes[i] ?? 0;
    if (code === 0) {
      Object.assign(next, { colour: '', bold: false, dim: false, italic: false, underlined: false });
    } else if (code === 1) {
      next.bold = true;
    } else if (code === 2) {
      next.dim = true;
    } else if (code === 3) {
      next.italic = true;
    } else if (code === 4) {
      next.underlined = true;
    } else if (code === 22) {
      next.bold = next.dim = false;
    } else if (code >= 30 && code <= 37) {
      next.colour = `c${code - 30}`;
    } else if (code >= 90 && code <= 97) {
      next.colour = `c${code - 90}`;
    } else if (code === 39) {
      next.colour = '';
    } else if (code === 38 || code === 48) {
      // A colour of 256 or of all: the first sixteen are known here.
      const known = codes[i + 1] === 5 ? (codes[i + 2] ?? 16) : 16;
      if (code === 38) {
        next.colour = known < 16 ? `c${known % 8}` : '';
      }
      i += codes[i + 1] === 5 ? 2 : 4;
    }
  }
  return next;
}
