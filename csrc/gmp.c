/* gmp.c: the public C interface: thin functions over the core. */
#include "gmp.h"

#include "sys.h"

const char *
gmp_version(void)
{
    return GMP_VERSION;
}

int
gmp_num_cpu(void)
{
    return sys_ncpu();
}

int64_t
gmp_nanotime(void)
{
    return nanotime();
}
