// An OpenSSL engine without algorithms, in the place of QAT_Engine's. Declared here
// as in openssl/engine.h (3.0), so that no headers are needed; libcrypto is in the
// process that loads it.
#include <stddef.h>
#include <stdlib.h>

struct engine;
int ENGINE_set_id(struct engine *, const char *);
int ENGINE_set_name(struct engine *, const char *);
int ENGINE_set_init_function(struct engine *, int (*)(struct engine *));

static int init(struct engine *e) {
	(void)e;
	return getenv("STANDIN_NO_DEVICE") == NULL;
}

int bind_engine(struct engine *e, const char *id, const void *functions) {
	(void)id; (void)functions;
	return ENGINE_set_id(e, "qatengine") && ENGINE_set_name(e, "stand-in for QAT_Engine") && ENGINE_set_init_function(e, init);
}

unsigned long v_check(unsigned long version) { return version; }
