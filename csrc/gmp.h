/* gmp.h: the public C interface of the runtime.
 *
 * Everything between the two cdef lines is also what Python sees as gmp.ffi and gmp.lib: it is handed to cffi as it stands,
 * so it holds plain declarations only, and the preprocessor has no business there.
 * Functions return 0 or a negative GMP_E... code (errors.h) unless their comment says otherwise.
 */
#ifndef GMP_H
#define GMP_H

#include <stddef.h>
#include <stdint.h>

#define GMP_VERSION "0.1.0" /* the one place where the version stands: setup.py reads it from here */

#ifdef __cplusplus
extern "C" {
#endif

/* cdef begin */
const char *gmp_version(void);      /* "0.1.0" */
const char *gmp_strerror(int code); /* one English sentence for a GMP_E... code; never NULL */
int gmp_num_cpu(void);              /* CPUs this process may run on */
int64_t gmp_nanotime(void);         /* the clock of all timers: monotonic, ns */
int64_t gmp_num_goroutine(void);    /* goroutines alive, of both sets */
/* cdef end */

#ifdef __cplusplus
}
#endif

#endif
