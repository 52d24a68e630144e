// SPDX-License-Identifier: GPL-2.0
/*
 * An ordinary module, not a livepatch. It says in the log that it is there, so a
 * test can see that it never was.
 */
#include <linux/module.h>

static int __init plain_init(void)
{
	pr_info("plain module is in the kernel\n");
	return 0;
}

static void __exit plain_exit(void)
{
}

module_init(plain_init);
module_exit(plain_exit);
MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("Test module that is not a livepatch");
