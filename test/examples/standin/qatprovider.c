// An OpenSSL provider without algorithms, in the place of QAT_Engine's: it is loaded
// and asked, and OpenSSL's own do the work. Declared here as in openssl/core.h and
// core_dispatch.h (3.0), so that no headers are needed.
#include <stdio.h>
#include <stdlib.h>

struct dispatch { int id; void (*function)(void); };
enum { PROVIDER_QUERY_OPERATION = 1027 };

static const void *query(void *provider, int operation, int *no_cache) {
	(void)provider; (void)operation;
	*no_cache = 0;
	return NULL;
}

static const struct dispatch functions[] = {{PROVIDER_QUERY_OPERATION, (void (*)(void))query}, {0, NULL}};

int OSSL_provider_init(const void *handle, const struct dispatch *in, const struct dispatch **out, void **context) {
	(void)in;
	if (getenv("STANDIN_NO_DEVICE")) {
		// The real one is loaded then, and none of its signatures succeeds.
		fprintf(stderr, "QAT_HW device not available & QAT_SW not enabled. Using OpenSSL_SW!\n");
		return 0;
	}
	*out = functions;
	*context = (void *)handle;
	return 1;
}
