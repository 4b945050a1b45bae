/* Starts Redoc on /redoc. Kept out of the page so that script-src 'self' is enough. */
'use strict';

// Redoc puts a logo from a CDN below its menu, and no option turns that off.
// The policy would block it, but report a violation each time. So this one image
// never gets its address, whichever way React sets it.
const image = HTMLImageElement.prototype;
image.setAttribute = function (name, value) {
  if (name === 'src' && String(value).startsWith('https://cdn.redoc.ly/')) {
    this.hidden = true;
  } else {
    Element.prototype.setAttribute.call(this, name, value);
  }
};
Object.defineProperty(image, 'src', {
  ...Object.getOwnPropertyDescriptor(image, 'src'),
  set(value) {
    this.setAttribute('src', value);
  },
});

const body = 'system-ui, sans-serif';

Redoc.init(
  'openapi.json',
  {
    disableSearch: true, // it needs worker-src blob:
    nativeScrollbars: true,
    sanitize: true, // clean HTML in descriptions
    jsonSamplesExpandLevel: 3,
    sortRequiredPropsFirst: true,
    theme: {
      // Redoc's own fonts would have to come from elsewhere.
      typography: {
        fontFamily: body,
        headings: { fontFamily: body },
        code: { fontFamily: 'ui-monospace, monospace' },
      },
    },
  },
  document.getElementById('redoc'),
);
