/* Starts Swagger UI on /docs. Kept out of the page so that script-src 'self' is enough. */
'use strict';

SwaggerUIBundle({
  url: 'openapi.json',
  dom_id: '#swagger-ui',
  deepLinking: true,
  tryItOutEnabled: true,
  persistAuthorization: false, // a key typed in here is gone after a reload
  queryConfigEnabled: false, // no ?url=... that points the page at another description
  validatorUrl: null, // no badge from an outside validator
  docExpansion: 'list',
  defaultModelsExpandDepth: 0,
  displayRequestDuration: true,
  filter: true,
});
