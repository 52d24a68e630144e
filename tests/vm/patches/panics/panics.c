// SPDX-License-Identifier: GPL-2.0
/*
 * A livepatch that is well for half a minute and then takes the machine down, as a
 * bad patch does: not while it is inserted, where everybody looks.
 *
 * /proc/cmdline answers ANSWER as with the other patches, so that it can be seen
 * that it was in force.
 */
#include <linux/jiffies.h>
#include <linux/kernel.h>
#include <linux/livepatch.h>
#include <linux/module.h>
#include <linux/seq_file.h>
#include <linux/workqueue.h>

#define DELAY (30 * HZ)

static int livepatch_cmdline_proc_show(struct seq_file *m, void *v)
{
	seq_puts(m, ANSWER "\n");
	return 0;
}

static void livepatch_panic(struct work_struct *work)
{
	panic("test livepatch: the time has come\n");
}

static DECLARE_DELAYED_WORK(end, livepatch_panic);

static struct klp_func funcs[] = {
	{
		.old_name = "cmdline_proc_show",
		.new_func = livepatch_cmdline_proc_show,
	},
	{ }
};

static struct klp_object objs[] = {
	{ .funcs = funcs },
	{ }
};

static struct klp_patch patch = {
	.mod = THIS_MODULE,
	.objs = objs,
	.replace = true,
};

static int __init panics_init(void)
{
	int err = klp_enable_patch(&patch);

	if (!err)
		schedule_delayed_work(&end, DELAY);
	return err;
}

/* A machine that gives the patch up in time is saved. */
static void __exit panics_exit(void)
{
	cancel_delayed_work_sync(&end);
}

module_init(panics_init);
module_exit(panics_exit);
MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("Test livepatch: panics half a minute after its insertion");
MODULE_INFO(livepatch, "Y");
